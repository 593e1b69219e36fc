"""Which patches are kept at inference."""

from __future__ import annotations

import torch

from rose_d2.modeling.patch_analyzer.super_patch import STUFF_ROLE
from rose_d2.structures.patch_grid import PatchGrid
from rose_d2.structures.refinement_request import BOX_SCALE, NormalisedBox


def select_patches(
    objectness_logits: torch.Tensor,
    roles: torch.Tensor | None,
    top_k: int,
    top_k_stuff: int = 0,
) -> torch.Tensor:
    """The patches with the highest objectness of one image (paper section 3.3).

    Args:
        objectness_logits: (P,).
        roles: (P,) long, or None where candidates have none.
        top_k: patches kept in all.
        top_k_stuff: of these, slots filled first from patches of the stuff role.

    Returns:
        (min(top_k, P),) long, by descending objectness; ties keep the lower index first.

    Raises:
        ValueError: if the reserved slots do not fit.
    """
    if not 0 <= top_k_stuff <= top_k:
        raise ValueError(
            f"TEST.TOP_K_STUFF {top_k_stuff} must be between 0 and TEST.TOP_K {top_k}."
        )
    order = objectness_logits.float().argsort(descending=True, stable=True)
    if not top_k_stuff or roles is None:
        return order[:top_k]
    is_stuff = roles[order] == STUFF_ROLE
    reserved = is_stuff & (is_stuff.cumsum(0) <= top_k_stuff)
    free = ~reserved
    kept = reserved | (free & (free.cumsum(0) <= top_k - int(reserved.sum())))
    return order[kept]


def patches_touching(grid: PatchGrid, box: NormalisedBox) -> torch.Tensor:
    """The patches that a box covers or touches, at least one.

    Args:
        grid: of the view.
        box: (x1, y1, x2, y2), integers 0-999, as instructions write it.

    Returns:
        bool (P,).
    """
    centres = grid.centres() * BOX_SCALE  # (P, 2)
    reach = BOX_SCALE / grid.side / 2
    first, last = torch.tensor(box[:2]) - reach, torch.tensor(box[2:]) + reach
    return ((centres >= first) & (centres <= last)).all(dim=1)
