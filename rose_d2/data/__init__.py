"""Everything between files and batches; importing the package registers the datasets."""

from rose_d2.data.datasets import builtin  # noqa: F401
