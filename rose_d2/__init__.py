"""ROSE: open-set dense segmentation with a patch-wise large multimodal model, on detectron2.

Importing the package registers the model's parts and the datasets with detectron2.
"""

from rose_d2 import data, modeling
from rose_d2.config.defaults import add_rose_config

__version__ = "0.1.0"

__all__ = ["add_rose_config", "data", "modeling"]
