"""Objectness, embeddings, roles, assignment and selection of patches."""
