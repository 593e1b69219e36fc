"""A list of names that `detectron2.structures.Instances` can hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch


class CategoryNames:
    """Names of N objects, indexable the way tensors are.

    `Instances` indexes all its fields with one item, so a plain list breaks as soon as somebody
    filters with a tensor. This class has the protocol Instances needs: length, indexing, `cat`
    and `to`.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """
        Args:
            names: N strings.

        Raises:
            TypeError: if `names` is itself a string or holds something else than strings.
        """
        if isinstance(names, str):
            raise TypeError(f"CategoryNames takes a list of strings, not one string ({names!r}).")
        self.names: tuple[str, ...] = tuple(names)
        for name in self.names:
            if not isinstance(name, str):
                raise TypeError(f"CategoryNames holds strings only, got {type(name).__name__}.")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CategoryNames) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"CategoryNames({list(self.names)})"

    def __getitem__(self, item: int | slice | torch.Tensor | Sequence[int]) -> CategoryNames | str:
        """Index with an int (gives a string), slice, boolean mask or list of positions.

        Args:
            item: int, slice, bool tensor (N,), long tensor (K,) or sequence of ints.

        Returns:
            A string for an int, otherwise the chosen names in order.

        Raises:
            IndexError: if a position is out of range or a mask is not of length N.
        """
        if isinstance(item, int):
            return self.names[item]
        if isinstance(item, slice):
            return CategoryNames(self.names[item])
        index = torch.as_tensor(item)
        if index.dtype == torch.bool:
            if index.numel() != len(self):
                raise IndexError(f"A mask of {index.numel()} cannot index {len(self)} names.")
            index = index.nonzero().flatten()
        return CategoryNames(self.names[i] for i in index.reshape(-1).tolist())

    def to(self, *args: object, **kwargs: object) -> CategoryNames:
        """Strings live on no device: returns self, so that `Instances.to` works."""
        return self

    @staticmethod
    def cat(parts: Sequence[CategoryNames]) -> CategoryNames:
        """Concatenate, as `Instances.cat` asks of its fields."""
        return CategoryNames(name for part in parts for name in part)
