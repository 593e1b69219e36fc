"""Masks from embeddings."""
