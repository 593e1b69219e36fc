"""Datasets and their loaders; importing the package registers them in detectron2's catalogs."""

from rose_d2.data.datasets import builtin  # noqa: F401
