"""Whole models at work: training, evaluation, prediction; floor 4."""
