"""How many bytes of tensors are alive, and the most that ever were."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the memory of every tensor made while it is active, from its making to its end.

    Works with tensors that have no values, too: it reads sizes, never an allocator. What a kernel
    takes for itself and returns before its end, it does not see.

    Attributes:
        current: bytes alive now, of tensors made since the start.
        peak: the most there were at once.
    """

    def __init__(self, known: Sequence[torch.Tensor] = ()) -> None:
        """
        Args:
            known: tensors made before, which do not count: weights, gradients, inputs.
        """
        super().__init__()
        self.current = 0
        self.peak = 0
        self._counted: dict[int, weakref.ref] = {}
        self._known = {_key(tensor): tensor for tensor in known}

    def restart(self) -> int:
        """Forget the peak so far and return it."""
        peak, self.peak = self.peak, self.current
        return peak

    def __torch_dispatch__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        self.peak = max(self.peak, self.current)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._counted or key in self._known:
            return
        size = storage.nbytes()

        def forget(_: weakref.ref) -> None:
            self.current -= size
            del self._counted[key]

        self._counted[key] = weakref.ref(storage, forget)
        self.current += size


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
