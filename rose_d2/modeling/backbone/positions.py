"""Position embeddings to start from where nothing is pretrained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def start_from_sine_cosine(vision_tower: nn.Module) -> None:
    """Replace a random SigLIP's position embeddings, in place.

    Hugging Face starts them near zero. Trained from there, the tiny model's patch features told
    nothing of where a patch lies (explained variance of its coordinates 0 after 18 000 steps).
    Values of the size of the patches' own stay visible. Not compared in a training from scratch.

    Args:
        vision_tower: Hugging Face's SigLIP, random weights, on a square grid.
    """
    positions = vision_tower.embeddings.position_embedding.weight
    side = math.isqrt(len(positions))
    with torch.no_grad():
        positions.copy_(sine_cosine_positions(side, positions.shape[1]))


class PatchPositions(nn.Module):
    """Learned position embeddings of projected patches, started from sines and cosines; ours.

    A language model's rotary positions count the patches row by row, so they tell a row better
    than a column, and a projector trained from scratch may not pass on where SigLIP's patches
    lie: of the tiny model's features SigLIP's explained 98 % of the variance of the coordinates,
    the projected ones 44 %, and expressions by the row were answered twice as well (74 %) as by
    the column (37 %). Trained on with these, 90 % and 82 % (docs/tiny_model.md).
    """

    def __init__(self, side: int, dim: int) -> None:
        """
        Args:
            side: S, patches along one side.
            dim: width D of the projected patches, a multiple of 4.

        Raises:
            ValueError: the width is no multiple of 4.
        """
        super().__init__()
        self.weight = nn.Parameter(sine_cosine_positions(side, dim))

    def forward(self, patches: Tensor) -> Tensor:
        """Add them to (B, S * S, D) patches."""
        return patches + self.weight


def sine_cosine_positions(side: int, dim: int) -> Tensor:
    """Two-dimensional sine-cosine position embeddings.

    Inner products of such vectors depend only on the offset of two patches, so attention can
    learn a neighbourhood for all patches at once.

    Args:
        side: S, patches along one side.
        dim: width, a multiple of 4.

    Returns:
        (S * S, dim), values in -1 to 1.

    Raises:
        ValueError: the width is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(
            f"A hidden_size (of MODEL.LMM.VISION_CONFIG, or of TEXT_CONFIG with PATCH_POSITIONS) "
            f"is {dim}: take a multiple of 4, two waves for each of two axes."
        )
    # From a quarter turn per patch down to a quarter turn per image.
    rates = torch.logspace(0, -math.log10(side), dim // 4) * math.pi / 2
    angles = torch.arange(side)[:, None] * rates  # (S, dim / 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (S, dim / 2)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, -1)
