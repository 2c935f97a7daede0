"""Text to vectors: backbone, pooling, tokenizer, snapshots."""
