"""ROSE: open-set dense segmentation with a patch-wise large multimodal model, on detectron2.

Importing the package registers the model's parts and the datasets with detectron2.
"""

import warnings

from rose_d2.dependencies import require

with warnings.catch_warnings():
    # detectron2 still uses torch.jit.script: nothing that a user can change.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    require("detectron2", "rose_d2")
    from rose_d2 import data, modeling
    from rose_d2.config.defaults import add_rose_config

__version__ = "0.2.0"

__all__ = ["add_rose_config", "data", "modeling"]
