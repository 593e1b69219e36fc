"""A page of saved predictions: the best, the worst and random images beside their ground truth."""
