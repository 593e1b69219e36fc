"""What the two image encoders make of one image, kept so that it is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageFeatures:
    """Features of one image under one prior mask, without anything that depends on the words.

    Attributes:
        patches: (P, D) the image and its prior mask, in the language model's width.
        sam: (E, g, g) SAM's embedding, which knows nothing of the prior mask.
    """

    patches: Tensor
    sam: Tensor


def stack_features(
    features: Sequence[ImageFeatures | None],
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Batch the features of B images.

    Args:
        features: one an image; None where an image has none.

    Returns:
        Patches (B, P, D) and SAM's embeddings (B, E, g, g), or two times None where the features
        of any image are missing: the whole batch is encoded then.
    """
    known = [entry for entry in features if entry is not None]
    if not known or len(known) < len(features):
        return None, None
    return torch.stack([f.patches for f in known]), torch.stack([f.sam for f in known])
