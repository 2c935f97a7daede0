"""Embedding sets in the forms of other systems."""
