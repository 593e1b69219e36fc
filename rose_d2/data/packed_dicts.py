"""A long list of dataset dicts in a few large buffers."""

from __future__ import annotations

import pickle
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

# What dicts share is worth storing once; a text or a number is as short as a reference to it.
_SHAREABLE = (list, dict)


class _Layout(NamedTuple):
    """What many dicts have in common: their keys, and which of the values are shared objects."""

    keys: tuple[str, ...]
    shared: tuple[int, ...]


class PackedDicts(Sequence):
    """Dataset dicts, serialised once; every access makes a new dict.

    A list of many small Python objects is copied page by page into every worker process, since
    reading an object changes its reference count. The bytes of a few tensors stay shared, whether
    workers are forked or spawned. A list or dict that several dataset dicts hold as the same
    object (`annotations`, `segments_info`) is stored once, and so are their keys.
    """

    def __init__(self, dicts: Sequence[dict[str, Any]]) -> None:
        """
        Args:
            dicts: dataset dicts of plain containers; they are not modified. Nested values must
                not be changed while this runs.
        """
        holders = Counter(
            id(value) for d in dicts for value in d.values() if isinstance(value, _SHAREABLE)
        )
        shared = {
            id(value): value
            for d in dicts
            for value in d.values()
            if isinstance(value, _SHAREABLE) and holders[id(value)] > 1
        }
        numbers = {key: number for number, key in enumerate(shared)}
        layouts: dict[_Layout, int] = {}
        self._shared = _PackedBytes(map(_dump, shared.values()))
        self._items = _PackedBytes(_dump(_split(d, numbers, layouts)) for d in dicts)
        self._layouts = list(layouts)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A new dict, equal to the original; changing it changes nothing else.

        Args:
            index: counted from the end if negative.
        """
        layout_number, *values = self._items[range(len(self))[index]]
        layout = self._layouts[layout_number]
        for position in layout.shared:
            values[position] = self._shared[values[position]]
        return dict(zip(layout.keys, values, strict=True))

    @property
    def num_bytes(self) -> int:
        """Size of the buffers."""
        return self._shared.num_bytes + self._items.num_bytes


def _split(
    record: dict[str, Any], numbers: dict[int, int], layouts: dict[_Layout, int]
) -> tuple[Any, ...]:
    """The number of a dict's layout, then its values, shared ones as their numbers."""
    values = list(record.values())
    shared = tuple(position for position, value in enumerate(values) if id(value) in numbers)
    for position in shared:
        values[position] = numbers[id(values[position])]
    layout = _Layout(tuple(record), shared)
    return layouts.setdefault(layout, len(layouts)), *values


def _dump(content: Any) -> bytes:
    return pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)


class _PackedBytes:
    """Pickles end to end in one tensor, and where each one ends in another."""

    def __init__(self, pickles: Iterable[bytes]) -> None:
        content, ends = bytearray(), array("q", [0])
        for part in pickles:
            content += part
            ends.append(len(content))
        # An empty buffer cannot become a tensor.
        self._content = torch.frombuffer(content or bytearray(1), dtype=torch.uint8)
        self._ends = torch.frombuffer(ends, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        start, end = self._ends[index : index + 2].tolist()
        return pickle.loads(memoryview(self._content[start:end].numpy()))

    @property
    def num_bytes(self) -> int:
        return self._content.nbytes + self._ends.nbytes
