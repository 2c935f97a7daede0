"""What is done to texts between the raw files and the shards. Each step is named in `CleaningConfig`."""
