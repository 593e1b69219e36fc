"""All loss terms of ROSE (paper section 3.5), one value per image, each a mean over its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rose_d2.layers.losses import (
    dice_loss,
    info_nce_loss,
    objectness_loss,
    patch_ranking_loss,
    sigmoid_bce_mask_loss,
    text_cross_entropy,
)


@dataclass(frozen=True)
class LossWeights:
    """Factor of each term (MODEL.ROSE.LOSS_WEIGHT)."""

    text: float = 1.0
    category: float = 1.0
    mask_bce: float = 2.0
    mask_dice: float = 0.5
    objectness: float = 1.0
    siglip: float = 1.0
    ranking: float = 0.0


@dataclass
class PairSupervision:
    """Everything the pair losses of one image need; M pairs, M may be 0.

    Attributes:
        mask_logits: (M, m, m).
        mask_targets: (M, m, m) in 0..1.
        valid: (m, m) bool, False on padding.
        category_losses: (M,) cross entropy of each pair's name.
        siglip_embeddings: (M, T) predictions.
        siglip_bank: (C, T) embeddings of the sample's vocabulary.
        siglip_targets: (M,) long rows of the bank.
        weights: (M,) by which the pairs of one object share 1.
    """

    mask_logits: torch.Tensor
    mask_targets: torch.Tensor
    valid: torch.Tensor
    category_losses: torch.Tensor
    siglip_embeddings: torch.Tensor
    siglip_bank: torch.Tensor
    siglip_targets: torch.Tensor
    weights: torch.Tensor


class RoseCriterion:
    """Weighs ROSE's loss terms of every image; a batch's loss is the mean over its images.

    An image without anything to learn for a term has loss 0 there and counts in that mean, so
    that accumulating micro-batches equals one large batch.
    """

    def __init__(self, weights: LossWeights, siglip_temperature: float) -> None:
        """
        Args:
            weights: factors of the terms.
            siglip_temperature: of the InfoNCE loss.
        """
        self.weights = weights
        self.siglip_temperature = siglip_temperature

    def text(
        self, logits: torch.Tensor, labels: torch.Tensor, images: torch.Tensor, num_images: int
    ) -> torch.Tensor:
        """Cross entropy of the responses.

        Args:
            logits: (T, V) of all response tokens of the batch.
            labels: (T,) long.
            images: (T,) long, image of each token.
            num_images: B.

        Returns:
            (B,) losses.
        """
        return self.weights.text * text_cross_entropy(logits, labels, images, num_images)

    def objectness(self, logits: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        """Binary cross entropy of the sampled patches.

        Args:
            logits: B tensors (Q_i,).
            targets: B bool tensors (Q_i,), True for positives.

        Returns:
            (B,) losses.
        """
        terms = [
            objectness_loss(logit, target.to(logit.dtype)).sum() / max(len(target), 1)
            for logit, target in zip(logits, targets, strict=True)
        ]
        return self.weights.objectness * torch.stack(terms)

    def ranking(self, asked: list[torch.Tensor], rivals: list[torch.Tensor]) -> torch.Tensor:
        """Whether the best patch is one of the asked object's; not in the paper.

        Args:
            asked: B tensors (P_i,), objectness logits of the asked object's patches.
            rivals: B tensors (R_i,), of the patches outside its window.

        Returns:
            (B,) losses.
        """
        terms = [patch_ranking_loss(*image) for image in zip(asked, rivals, strict=True)]
        return self.weights.ranking * torch.stack(terms)

    def pairs(self, images: list[PairSupervision]) -> dict[str, torch.Tensor]:
        """Mask, name and SigLIP losses (B,) of the matched patches of B images."""
        terms = [self._pairs_of_image(image) for image in images]
        factors = {
            "loss_mask_bce": self.weights.mask_bce,
            "loss_mask_dice": self.weights.mask_dice,
            "loss_category": self.weights.category,
            "loss_siglip": self.weights.siglip,
        }
        return {
            name: factor * torch.stack([term[name] for term in terms])
            for name, factor in factors.items()
        }

    def _pairs_of_image(self, image: PairSupervision) -> dict[str, torch.Tensor]:
        bce = sigmoid_bce_mask_loss(image.mask_logits, image.mask_targets, image.valid)
        dice = dice_loss(image.mask_logits, image.mask_targets, image.valid)
        siglip = info_nce_loss(
            image.siglip_embeddings,
            image.siglip_bank,
            image.siglip_targets,
            self.siglip_temperature,
        )
        share = image.weights / image.weights.sum().clamp(min=1e-6)
        return {
            "loss_mask_bce": (bce * share).sum(),
            "loss_mask_dice": (dice * share).sum(),
            "loss_category": (image.category_losses * share).sum(),
            "loss_siglip": (siglip * share).sum(),
        }
