"""What a referring sample should be answered with, decoded at the size of its image."""

from __future__ import annotations

import numpy as np
import torch

from rose_d2.data.annotated_regions import square_view
from rose_d2.evaluation.ground_truth import decode_segmentation
from rose_d2.layers.mask_ops import mask_centre
from rose_d2.structures.patch_grid import PatchGrid


class ReferringTarget:
    """The objects a referring sample is about.

    A crowd counts like any object: somebody described it. Pixels of "ignore_annotations" are left
    out of the score, whatever else covers them.
    """

    def __init__(self, sample: dict) -> None:
        """
        Args:
            sample: a referring dataset dict with height, width, "annotations", "target_indices"
                (positions in them, none or several) and, optionally, "ignore_annotations" (more
                COCO-style annotations, e.g. what ReasonSeg labels "ignore").
        """
        self._annotations = sample["annotations"]
        self._indices = list(sample["target_indices"])
        self._ignored = sample.get("ignore_annotations")
        self.size = int(sample["height"]), int(sample["width"])
        self._masks = [self._decode(self._annotations[index]) for index in self._indices]
        self.mask = self._union(self._masks)  # bool (H, W), of all objects
        ignored = [self._decode(annotation) for annotation in self._ignored or ()]
        self.ignore = self._union(ignored) if ignored else None  # bool (H, W) or None
        self._patches: dict[tuple[PatchGrid, int], frozenset[int]] = {}

    def __len__(self) -> int:
        """Number of objects."""
        return len(self._indices)

    def fits(self, sample: dict) -> bool:
        """Whether a sample has this target, as sentences of one reference do."""
        return (
            self._annotations is sample["annotations"]
            and self._indices == list(sample["target_indices"])
            and self._ignored is sample.get("ignore_annotations")
        )

    def window_patches(self, grid: PatchGrid, window: int) -> frozenset[int]:
        """Patches that may answer: the windows around the objects' centres, as in training.

        Args:
            grid: over the square view.
            window: side of a window in patches.
        """
        if (grid, window) not in self._patches:
            centres = [self._centre(mask, grid.image_size) for mask in self._masks if mask.any()]
            self._patches[grid, window] = frozenset(
                patch for centre in centres for patch in grid.window(centre, window).tolist()
            )
        return self._patches[grid, window]

    def _centre(self, mask: np.ndarray, side: int) -> tuple[float, float]:
        """(x, y) of a mask's centre in pixels of the square view."""
        view = square_view(mask, side)
        if not view.any():  # lost between the pixels of the view
            view = mask
        x, y = mask_centre(torch.from_numpy(view))
        return x / view.shape[1] * side, y / view.shape[0] * side

    def _decode(self, annotation: dict) -> np.ndarray:
        return decode_segmentation(annotation, *self.size).numpy()

    def _union(self, masks: list[np.ndarray]) -> np.ndarray:
        return np.any(masks, axis=0) if masks else np.zeros(self.size, dtype=bool)
