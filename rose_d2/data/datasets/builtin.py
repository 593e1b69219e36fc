"""Registers every dataset of the package under $DETECTRON2_DATASETS (default: ./datasets).

The variable is read once, when this module is imported; call the `register_*` functions again to
use another folder. No file is opened before a dataset is asked for.
"""

import os

from rose_d2.data.datasets.ade20k import register_ade20k
from rose_d2.data.datasets.clipart import register_clipart
from rose_d2.data.datasets.coco import register_coco, register_coco_stuff
from rose_d2.data.datasets.mapillary_vistas import register_mapillary_vistas
from rose_d2.data.datasets.reasonseg import register_reasonseg
from rose_d2.data.datasets.refcoco import register_refer

DEFAULT_ROOT = "datasets"


def register_all(root: str) -> None:
    """Registers all datasets; doing so again replaces them.

    Args:
        root: folder that holds one folder per dataset; `~` is expanded.
    """
    root = os.path.expanduser(root)
    register_clipart(root)
    register_ade20k(root)
    register_coco(root)
    register_coco_stuff(root)
    register_mapillary_vistas(root)
    register_refer(root)
    register_reasonseg(root)


register_all(os.environ.get("DETECTRON2_DATASETS", DEFAULT_ROOT))
