"""Evaluation, one protocol a file: retrieval, zero-shot classification, health of the embeddings, pictures."""
