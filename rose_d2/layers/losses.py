"""Loss functions with one value per item; the caller decides how items are averaged.

Every function computes in float32 whatever the precision of its input, and returns an
empty result (not NaN) for zero items.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_bce_mask_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross entropy of each mask, averaged over its valid pixels.

    Args:
        logits: (N, h, w) mask logits.
        targets: (N, h, w) soft targets in [0, 1].
        valid: bool (h, w) or (N, h, w); False excludes padding and ignored pixels.

    Returns:
        (N,) non-negative losses; 0 for a mask without a valid pixel.
    """
    _check_same_shape(logits, targets)
    valid_map = _expand_valid(valid, logits)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    pixels = valid_map.sum(dim=(1, 2)).clamp(min=1)
    return (losses * valid_map).sum(dim=(1, 2)) / pixels


def dice_loss(
    logits: Tensor,
    targets: Tensor,
    valid: Tensor | None = None,
    smooth: float = 1.0,
) -> Tensor:
    """One minus the Dice coefficient of each mask over its valid pixels.

    Args:
        logits: (N, h, w) mask logits.
        targets: (N, h, w) soft targets in [0, 1].
        valid: bool (h, w) or (N, h, w); False excludes padding and ignored pixels.
        smooth: added to numerator and denominator, which makes two empty masks a perfect match.

    Returns:
        (N,) losses in [0, 1).
    """
    _check_same_shape(logits, targets)
    valid_map = _expand_valid(valid, logits)
    probabilities = logits.float().sigmoid() * valid_map
    targets = targets.float() * valid_map
    overlap = (probabilities * targets).sum(dim=(1, 2))
    total = probabilities.sum(dim=(1, 2)) + targets.sum(dim=(1, 2))
    return 1 - (2 * overlap + smooth) / (total + smooth)


def objectness_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of each patch.

    Args:
        logits: (M,) objectness logits.
        targets: (M,) bool or float in [0, 1]; 1 for patches that answer the instruction.

    Returns:
        (M,) non-negative losses.
    """
    _check_same_shape(logits, targets)
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")


def patch_ranking_loss(asked: Tensor, rivals: Tensor) -> Tensor:
    """Cross entropy of "an asked patch" against "any rival", by a softmax over both.

    Args:
        asked: (P,) objectness logits of the asked object's patches.
        rivals: (R,) objectness logits of the patches that must stay below.

    Returns:
        Scalar, non-negative; 0 where either has no patch.
    """
    if not len(asked) or not len(rivals):
        return asked.float().sum() * 0 + rivals.float().sum() * 0
    return F.softplus(rivals.float().logsumexp(dim=0) - asked.float().logsumexp(dim=0))


def info_nce_loss(
    embeddings: Tensor,
    bank: Tensor,
    targets: Tensor,
    temperature: float,
) -> Tensor:
    """InfoNCE of each embedding against a bank of distinct class embeddings.

    Two rows of the bank for one name would be each other's negatives, so equal names must be
    merged before the bank is built.

    Args:
        embeddings: (N, d) predicted embeddings, any norm.
        bank: (C, d) class embeddings, any norm.
        targets: (N,) long, row of the bank that is right for each embedding.
        temperature: divides the cosine similarities.

    Returns:
        (N,) non-negative losses.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(
            f"Got the InfoNCE temperature {temperature}; it divides similarities, so use a value "
            "above 0 (0.07 is usual)."
        )
    similarities = F.normalize(embeddings.float(), dim=-1) @ F.normalize(bank.float(), dim=-1).T
    return F.cross_entropy(similarities / temperature, targets, reduction="none")


def text_cross_entropy(logits: Tensor, labels: Tensor, items: Tensor, num_items: int) -> Tensor:
    """Cross entropy of each item's tokens, averaged over them.

    Args:
        logits: (T, V) of all tokens of all items, where a label is and only there.
        labels: (T,) long, the right tokens.
        items: (T,) long in 0..num_items-1, item of each token.
        num_items: N; items may have no token.

    Returns:
        (N,) non-negative losses; 0 for an item without a token.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    nothing = losses.new_zeros(num_items)
    # Not bincount, for whose size a GPU is waited for.
    counts = nothing.index_add(0, items, torch.ones_like(losses)).clamp(min=1)
    return nothing.index_add(0, items, losses) / counts


def _expand_valid(valid: Tensor | None, logits: Tensor) -> Tensor:
    """The valid mask as (N, h, w), all True when absent."""
    if valid is None:
        return torch.ones_like(logits, dtype=torch.bool)
    return valid.to(logits.device).expand_as(logits)


def _check_same_shape(logits: Tensor, targets: Tensor) -> None:
    if logits.shape != targets.shape:
        raise ValueError(
            f"Got logits of shape {tuple(logits.shape)} and targets of shape "
            f"{tuple(targets.shape)}; they must be equal, so resize the targets first."
        )
