"""How the items of an evaluation are divided among processes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch.utils.data as torchdata
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm


class WholeBatchSampler(torchdata.Sampler[int]):
    """Every item once, like detectron2's `InferenceSampler`, but cut only between batches.

    Whatever the number of processes, the model then sees the same batches. Numbers do not change
    even by the rounding that another batch would bring.
    """

    def __init__(self, size: int, batch_size: int) -> None:
        """
        Args:
            size: items of the dataset, at least 1.
            batch_size: of the loader.
        """
        batches = InferenceSampler._get_local_indices(
            math.ceil(size / batch_size), comm.get_world_size(), comm.get_rank()
        )
        self._indices = range(
            min(size, batches.start * batch_size), min(size, batches.stop * batch_size)
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)
