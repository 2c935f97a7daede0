"""Corpus to embeddings, index, neighbours: Ray, FAISS, search, mining, retrieval evaluation."""
