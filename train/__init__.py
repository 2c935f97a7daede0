"""Pairs to encoder: collectives, loss, gradient cache, engines, checkpoints, the loop."""
