"""Registers every dataset of the package under $DETECTRON2_DATASETS (default: ./datasets).

The variable is read once, when this module is imported; call the `register_*` functions again to
use another folder. No file is opened before a dataset is asked for.
"""

import os

from rose_d2.data.datasets.clipart import register_clipart

DEFAULT_ROOT = "datasets"


def register_all(root: str) -> None:
    """Registers all datasets; doing so again replaces them.

    Args:
        root: folder that holds one folder per dataset.
    """
    register_clipart(root)


register_all(os.environ.get("DETECTRON2_DATASETS", DEFAULT_ROOT))
