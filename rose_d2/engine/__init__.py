"""Training and checkpoints: floor 4."""
