"""Low-resolution logits of one image's masks, drawn at its size when they are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from detectron2.structures import Boxes
from torch import Tensor

from rose_d2.layers.lazy_tensor import LazyTensor
from rose_d2.layers.masks import boxes_around, first_and_end

# Logits or scores of the image's size that exist at once: 4 MB of float32.
_PIXELS_AT_ONCE = 1 << 20

# Rows and columns of an image.
Window = tuple[slice, slice]


def stripes(window: Window) -> Iterator[Window]:
    """Divide a part of an image, from the top down, into parts of a bounded number of pixels."""
    rows, columns = window
    step = max(1, _PIXELS_AT_ONCE // max(1, columns.stop - columns.start))
    for top in range(rows.start, rows.stop, step):
        yield slice(top, min(top + step, rows.stop)), columns


class LogitMasks(LazyTensor):
    """N masks of an image of H x W pixels that take no more memory than their logits.

    Bilinear upscaling weighs rows and columns apart, so that any window of a mask is a product of
    three small matrices, and where no positive logit reaches there is nothing to draw. As a tensor
    they are bool (N, H, W); indexed by one number they are a mask, bool (H, W), and indexed by
    anything else fewer masks, as every field of Instances.
    """

    def __init__(
        self, logits: Tensor, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> None:
        """
        Args:
            logits: (N, h, w), above 0 inside.
            rows: float32 (H, h), what every row of pixels takes of the rows of logits, nowhere
                below 0; None: the logits are of the image's size.
            columns: float32 (W, w), likewise; None where `rows` is.
        """
        self.logits = logits
        self.rows = rows
        self.columns = columns

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.logits.shape[1:]
        if self.rows is None or self.columns is None:
            return height, width
        return len(self.rows), len(self.columns)

    @property
    def shape(self) -> torch.Size:
        """(N, H, W)."""
        return torch.Size((len(self), *self.image_size))

    @property
    def dtype(self) -> torch.dtype:
        """Of what is drawn: bool."""
        return torch.bool

    @property
    def device(self) -> torch.device:
        """Of the logits, and of what is drawn."""
        return self.logits.device

    def __len__(self) -> int:
        return len(self.logits)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.draw(index) for index in range(len(self)))

    def __getitem__(self, chosen: Any) -> Any:
        if isinstance(chosen, int) or (isinstance(chosen, Tensor) and chosen.dim() == 0):
            return self.draw(int(chosen))
        if isinstance(chosen, tuple):
            return self.tensor[chosen]
        return LogitMasks(self.logits[chosen], self.rows, self.columns)

    def to(self, *args: Any, **kwargs: Any) -> LogitMasks:
        """Move the logits, as `Tensor.to` does; masks stay masks whatever the dtype."""
        device = torch.empty(0, device=self.device).to(*args, **kwargs).device
        if self.rows is None or self.columns is None:
            return LogitMasks(self.logits.to(device))
        return LogitMasks(self.logits.to(device), self.rows.to(device), self.columns.to(device))

    @staticmethod
    def cat(several: Sequence[LogitMasks | Tensor]) -> Tensor:
        """All masks of several images of one size, bool (N, H, W); called by `Instances.cat`."""
        return torch.cat([mask[None] for masks in several for mask in masks])

    def cpu(self) -> LogitMasks:
        """The masks on the CPU."""
        return self.to("cpu")

    @property
    def tensor(self) -> Tensor:
        """All masks, bool (N, H, W)."""
        masks = self.logits.new_zeros(self.shape, dtype=torch.bool)
        for index in range(len(self)):
            self._draw_on(masks[index], index)
        return masks

    def draw(self, index: int) -> Tensor:
        """One mask, bool (H, W)."""
        mask = self.logits.new_zeros(self.image_size, dtype=torch.bool)
        self._draw_on(mask, index)
        return mask

    def union(self) -> Tensor:
        """The pixels of any of the masks, bool (H, W)."""
        mask = self.logits.new_zeros(self.image_size, dtype=torch.bool)
        for index in range(len(self)):
            self._draw_on(mask, index)
        return mask

    def boxes(self) -> Boxes:
        """Tight boxes, see `masks_to_boxes`."""
        height, width = self.image_size
        rows = self.logits.new_zeros(len(self), height, dtype=torch.bool)
        columns = self.logits.new_zeros(len(self), width, dtype=torch.bool)
        for index in range(len(self)):
            for (vertical, horizontal), logits in self.windows(index):
                inside = logits > 0
                rows[index, vertical] = inside.any(dim=1)
                columns[index, horizontal] |= inside.any(dim=0)
        return boxes_around(rows, columns)

    def windows(self, index: int) -> Iterator[tuple[Window, Tensor]]:
        """The parts of the image where a mask can have pixels, from the top down.

        Yields:
            Rows and columns, and their logits, float32 (h, w).
        """
        top, bottom, left, right = self.reach[index]
        for window in stripes((slice(top, bottom), slice(left, right))):
            yield window, self.window(index, window)

    def window(self, index: int, window: Window) -> Tensor:
        """Logits of a part of the image, float32 (h, w)."""
        vertical, horizontal = window
        if self.rows is None or self.columns is None:
            return self.logits[index][window].float()
        # In full precision: half of it would move the outline.
        with torch.autocast(self.device.type, enabled=False):
            logits = self.logits[index].float()
            return self.rows[vertical] @ logits @ self.columns[horizontal].T

    def whole(self) -> Tensor:
        """All logits, float32 (N, H, W)."""
        everywhere = slice(0, self.image_size[0]), slice(0, self.image_size[1])
        if not len(self):
            return torch.zeros(self.shape, device=self.device)
        return torch.stack([self.window(index, everywhere) for index in range(len(self))])

    def _draw_on(self, mask: Tensor, index: int) -> None:
        for window, logits in self.windows(index):
            mask[window] |= logits > 0

    @cached_property
    def reach(self) -> list[list[int]]:
        """Rows and columns that positive logits reach: top, bottom, left and right of each mask."""
        positive = self.logits > 0
        rows, columns = positive.any(dim=2), positive.any(dim=1)  # (N, h), (N, w)
        if self.rows is not None and self.columns is not None:
            rows = rows.float() @ (self.rows.T > 0).float() > 0  # (N, H)
            columns = columns.float() @ (self.columns.T > 0).float() > 0  # (N, W)
        edges = (*first_and_end(rows), *first_and_end(columns))
        return torch.stack(edges, dim=1).tolist()
