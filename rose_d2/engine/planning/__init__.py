"""Memory and time before a training, and measured."""
