"""Image features of one session: SAM's once, the language model's once a prior mask."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import nn

from rose_d2.structures.image_features import ImageFeatures

# Prior masks whose features are kept; at 7B one costs 16 MB in bfloat16.
_KEPT_PRIORS = 8


class SessionFeatures:
    """Runs a model's image encoders only on what they have not seen yet."""

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: has `encode`, see `ROSE.encode`.
        """
        self._model = model
        self._by_prior: OrderedDict[bytes, ImageFeatures] = OrderedDict()

    def of(self, item: dict[str, Any]) -> ImageFeatures:
        """Features of the session's image under the item's prior mask.

        Args:
            item: one of `batched_inputs`, always of the same image.
        """
        prior = item.get("prior_mask")
        key = b"" if prior is None else np.packbits(prior.numpy() > 0).tobytes()
        if key not in self._by_prior:
            known = next(iter(self._by_prior.values()), None)
            with torch.no_grad():
                self._by_prior[key] = self._model.encode(item, known)
        self._by_prior.move_to_end(key)
        while len(self._by_prior) > _KEPT_PRIORS:
            self._by_prior.popitem(last=False)
        return self._by_prior[key]
