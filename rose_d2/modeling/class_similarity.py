"""The last resort of the name mapping: nearness of text embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rose_d2.modeling.text_embeddings import TextEmbeddingBank


@dataclass(frozen=True)
class ClassSimilarity:
    """The nearest class embedding, if it is near enough.

    Attributes:
        bank: (C, d) class embeddings, any norm.
        threshold: smallest cosine similarity that counts as a match.
        embed_names: maps names to (K, d) embeddings; None if predicted embeddings are always given.
    """

    bank: Tensor
    threshold: float
    embed_names: Callable[[Sequence[str]], Tensor] | None = None

    @classmethod
    def from_bank(
        cls, bank: TextEmbeddingBank, class_names: Sequence[str], threshold: float, *, embed: bool
    ) -> ClassSimilarity:
        """Similarity to the names of C classes.

        Args:
            bank: makes the embeddings of the classes.
            class_names: C names, possibly none.
            threshold: smallest cosine similarity that counts as a match.
            embed: names are embedded with the bank too; False: their embeddings are predicted.
        """
        classes = bank(tuple(class_names)) if class_names else torch.zeros(0, bank.dim)
        return cls(classes, threshold, bank.embed if embed else None)

    def nearest(self, names: Sequence[str], embeddings: Tensor | None) -> list[int]:
        """Class of each name, -1 below the threshold.

        Args:
            names: K names.
            embeddings: (K, d) embeddings predicted for them; None embeds the names.

        Raises:
            ValueError: if there are neither embeddings nor a function to make them.
        """
        if embeddings is None:
            if self.embed_names is None:
                raise ValueError(
                    "Got no embeddings for the similarity rule; pass them to map_names, or "
                    "construct ClassSimilarity with embed_names."
                )
            embeddings = self.embed_names(names)
        if not len(self.bank):
            return [-1] * len(names)
        bank = F.normalize(self.bank.float(), dim=-1)
        cosines = F.normalize(embeddings.float(), dim=-1) @ bank.T.to(embeddings.device)  # (K, C)
        best, class_ids = cosines.max(dim=-1)
        return torch.where(best >= self.threshold, class_ids, -1).tolist()
