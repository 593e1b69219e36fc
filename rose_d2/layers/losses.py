"""Loss functions with one value per item; the caller decides how items are averaged.

Every function computes in float32 whatever the precision of its input, multiplies by ``weights``
when they are given, and returns an empty result (not NaN) for zero items.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DEFAULT_IGNORE_INDEX = -100


def sigmoid_bce_mask_loss(
    logits: Tensor, targets: Tensor, valid: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Binary cross entropy of each mask, averaged over its valid pixels.

    Args:
        logits: (N, h, w) mask logits.
        targets: (N, h, w) soft targets in [0, 1].
        valid: bool (h, w) or (N, h, w); False excludes padding and ignored pixels.
        weights: (N,) factor per mask.

    Returns:
        (N,) non-negative losses; 0 for a mask without a valid pixel.
    """
    _check_same_shape(logits, targets)
    valid_map = _expand_valid(valid, logits)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    pixels = valid_map.sum(dim=(1, 2)).clamp(min=1)
    return _weigh((losses * valid_map).sum(dim=(1, 2)) / pixels, weights)


def dice_loss(
    logits: Tensor,
    targets: Tensor,
    valid: Tensor | None = None,
    weights: Tensor | None = None,
    smooth: float = 1.0,
) -> Tensor:
    """One minus the Dice coefficient of each mask over its valid pixels.

    Args:
        logits: (N, h, w) mask logits.
        targets: (N, h, w) soft targets in [0, 1].
        valid: bool (h, w) or (N, h, w); False excludes padding and ignored pixels.
        weights: (N,) factor per mask.
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
    return _weigh(1 - (2 * overlap + smooth) / (total + smooth), weights)


def objectness_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross entropy of each patch.

    Args:
        logits: (M,) objectness logits.
        targets: (M,) bool or float in [0, 1]; 1 for patches that answer the instruction.
        weights: (M,) factor per patch.

    Returns:
        (M,) non-negative losses.
    """
    _check_same_shape(logits, targets)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return _weigh(losses, weights)


def info_nce_loss(
    embeddings: Tensor,
    bank: Tensor,
    targets: Tensor,
    temperature: float,
    weights: Tensor | None = None,
) -> Tensor:
    """InfoNCE of each embedding against a bank of distinct class embeddings.

    Two rows of the bank for one name would be each other's negatives, so equal names must be
    merged before the bank is built.

    Args:
        embeddings: (N, d) predicted embeddings, any norm.
        bank: (C, d) class embeddings, any norm.
        targets: (N,) long, row of the bank that is right for each embedding.
        temperature: divides the cosine similarities.
        weights: (N,) factor per embedding.

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
    return _weigh(F.cross_entropy(similarities / temperature, targets, reduction="none"), weights)


def text_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    shift: bool = True,
    ignore_index: int = DEFAULT_IGNORE_INDEX,
) -> Tensor:
    """Cross entropy of each token sequence, averaged over its supervised tokens.

    Args:
        logits: (B, L, V) token logits.
        labels: (B, L) long token ids; ``ignore_index`` marks tokens without supervision.
        weights: (B,) factor per sequence.
        shift: True when labels are aligned with ``input_ids`` (the logits at position t then answer
            for the label at t + 1); False when the caller has aligned logits and labels already.
        ignore_index: label without supervision.

    Returns:
        (B,) non-negative losses; 0 for a sequence without a supervised token.
    """
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    supervised = labels != ignore_index
    # Only supervised positions are copied to float32: a 150k vocabulary makes them large.
    token_losses = F.cross_entropy(
        logits[supervised].float(), labels[supervised], reduction="none"
    )  # (supervised tokens,)
    sequence = supervised.nonzero()[:, 0]
    sums = token_losses.new_zeros(len(labels)).index_add(0, sequence, token_losses)
    return _weigh(sums / supervised.sum(dim=1).clamp(min=1), weights)


def _weigh(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses if weights is None else losses * weights.to(losses)


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
