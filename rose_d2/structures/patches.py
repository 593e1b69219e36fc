"""Patches: the S x S grid they form, what is proposed and predicted at them, and their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchGrid:
    """Square grid of patches over the LMM's square view (paper section 3.2).

    Patches are numbered row by row: `index = row * side + column`.

    Attributes:
        side: S, patches along one side.
        patch_size: pixels along one side of a patch.
    """

    side: int
    patch_size: int

    @classmethod
    def from_image_size(cls, image_size: int, patch_size: int) -> PatchGrid:
        """Grid of an `image_size` x `image_size` view.

        Raises:
            ValueError: if the patch size does not divide the image size.
        """
        if image_size % patch_size:
            raise ValueError(
                f"MODEL.LMM.IMAGE_SIZE {image_size} is not a multiple of PATCH_SIZE {patch_size};"
                f" take {image_size // patch_size * patch_size}."
            )
        return cls(image_size // patch_size, patch_size)

    @property
    def num_patches(self) -> int:
        """P = S * S."""
        return self.side * self.side

    @property
    def image_size(self) -> int:
        """Side of the view in pixels."""
        return self.side * self.patch_size

    def rows_and_columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of every patch, two long tensors (P,)."""
        index = torch.arange(self.num_patches)
        return index // self.side, index % self.side

    def centres(self) -> torch.Tensor:
        """Centre of every patch as fractions of the view, (P, 2) float, x before y."""
        rows, columns = self.rows_and_columns()
        return (torch.stack([columns, rows], dim=1) + 0.5) / self.side

    def patch_of(self, point: tuple[float, float]) -> int:
        """Index of the patch that contains a point.

        Args:
            point: (x, y) in pixels of the view; points on or over the border count as inside.
        """
        x, y = point
        column = min(max(int(x // self.patch_size), 0), self.side - 1)
        row = min(max(int(y // self.patch_size), 0), self.side - 1)
        return row * self.side + column

    def window(self, point: Sequence[float], size: int) -> torch.Tensor:
        """The `size` x `size` block of patches whose centre is nearest the point.

        For an odd size that block is centred on the point's patch. A block cut by the border
        shifts inward, so every window has the full number of patches.

        Args:
            point: (x, y) in pixels of the view.
            size: patches along one side of the block, at most S.

        Returns:
            (size * size,) long, ascending patch indices.

        Raises:
            ValueError: if the block is larger than the grid.
        """
        rows, columns = (torch.arange(s.start, s.stop) for s in self.block(point, size))
        return (rows[:, None] * self.side + columns[None, :]).flatten()

    def block(self, point: Sequence[float], size: int) -> tuple[slice, slice]:
        """The rows and the columns of `window`, for arrays (S, S).

        Args:
            point: (x, y) in pixels of the view.
            size: patches along one side of the block, at most S.

        Raises:
            ValueError: if the block is larger than the grid.
        """
        if not 1 <= size <= self.side:
            raise ValueError(f"A window of {size} patches does not fit a grid of side {self.side}.")
        top, left = self._first(point[1], size), self._first(point[0], size)
        return slice(top, top + size), slice(left, left + size)

    def _first(self, coordinate: float, size: int) -> int:
        if size % 2:
            inside = min(max(int(coordinate // self.patch_size), 0), self.side - 1)
            first = inside - size // 2
        else:
            # An even block is centred on a grid line: take the nearest one.
            first = int(coordinate / self.patch_size + 0.5) - size // 2
        return min(max(first, 0), self.side - size)


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


@dataclass
class QueryProposals:
    """What a query proposer returns for a batch.

    Attributes:
        features: (B, P, D) one vector per candidate.
        objectness_logits: (B, P) logits of "an object of interest is here".
        roles: (P,) long role of each candidate, or None for candidates without a location.
        names: names of chosen candidates of an image, where they are not decoded from embeddings:
            called with its index and (K,) long candidates.
    """

    features: torch.Tensor
    objectness_logits: torch.Tensor
    roles: torch.Tensor | None
    names: Callable[[int, torch.Tensor], Any] | None = None


@dataclass(frozen=True)
class ImageFeatures:
    """Features of one image, without anything that depends on the words.

    Attributes:
        sam: (E, g, g) SAM's embedding, which knows nothing of a prior mask.
        patches: (P, D) the image and its prior mask, in the language model's width; None where the
            prior mask is not known yet.
    """

    sam: Tensor
    patches: Tensor | None = None


def stack_features(
    features: Sequence[ImageFeatures | None],
) -> tuple[Tensor | None, Tensor | None]:
    """Batch the features of B images.

    Args:
        features: one an image; None where an image has none.

    Returns:
        Patches (B, P, D) and SAM's embeddings (B, E, g, g), each None where any image lacks it:
        the whole batch is encoded then.
    """
    patches = [None if entry is None else entry.patches for entry in features]
    sam = [None if entry is None else entry.sam for entry in features]
    return _stack_known(patches), _stack_known(sam)


def _stack_known(tensors: Sequence[Tensor | None]) -> Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(known) if known and len(known) == len(tensors) else None
