"""ROSE: open-set dense segmentation with a patch-wise large multimodal model, on detectron2.

Importing the package registers the model's parts and the datasets with detectron2.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from rose_d2.dependencies import require

with warnings.catch_warnings():
    # detectron2 still uses torch.jit.script: nothing that a user can change.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    require("detectron2", "rose_d2")
    from rose_d2 import data, modeling
    from rose_d2.config.defaults import add_rose_config

if TYPE_CHECKING:
    from rose_d2.predictor.results import Results
    from rose_d2.predictor.rose import Rose

__version__ = "0.2.0"

__all__ = ["Results", "Rose", "add_rose_config", "data", "modeling"]


def __getattr__(name: str) -> Any:
    """Import what using a model needs only when it is asked for: training does not need it."""
    if name == "Rose":
        from rose_d2.predictor.rose import Rose

        return Rose
    if name == "Results":
        from rose_d2.predictor.results import Results

        return Results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
