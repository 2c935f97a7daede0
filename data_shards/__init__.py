"""Raw text to shards, shards to global batches."""
