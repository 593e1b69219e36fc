"""Meta-architectures."""
