"""Shards that lie elsewhere: fetched whole and verified into a bounded cache."""
