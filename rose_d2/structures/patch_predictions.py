"""What the patch analyzer says about one image's patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class PatchPredictions:
    """Heads' outputs for K chosen patches of one image.

    Attributes:
        patches: (K,) long, patch indices on the grid (-1 where a proposer has no location).
        centres: (K, 2) x, y of the patches' centres as fractions of the image.
        objectness_logits: (K,) logits of "an object of interest is here".
        mask_embeddings: (K, E) prompts for SAM's mask decoder.
        category_embeddings: (K, D) inputs of the language model that spell a name.
        siglip_embeddings: (K, T) predictions of SigLIP's text embedding of the name.
    """

    patches: torch.Tensor
    centres: torch.Tensor
    objectness_logits: torch.Tensor
    mask_embeddings: torch.Tensor
    category_embeddings: torch.Tensor
    siglip_embeddings: torch.Tensor

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, item: torch.Tensor | slice) -> PatchPredictions:
        """Choose patches with a slice, a boolean mask (K,) or long positions."""
        return PatchPredictions(
            self.patches[item],
            self.centres[item],
            self.objectness_logits[item],
            self.mask_embeddings[item],
            self.category_embeddings[item],
            self.siglip_embeddings[item],
        )

    @property
    def scores(self) -> torch.Tensor:
        """(K,) objectness probabilities in 0..1."""
        return self.objectness_logits.float().sigmoid()
