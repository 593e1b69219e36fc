"""What is on disk, and how a run continues from it."""
