"""What stands for a large tensor until somebody needs it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class LazyTensor:
    """Has the tensor made anew wherever one is asked of it, and keeps none.

    PyTorch's functions, NumPy, operators, indices, and every attribute of a tensor that a subclass
    has not (`sum`, `float`, `numpy`, ...) work on the tensor.
    """

    @property
    def tensor(self) -> Tensor:
        """The tensor."""
        raise NotImplementedError

    @property
    def shape(self) -> torch.Size:
        """Of the tensor, which is not made for it."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map(_made, (args, kwargs or {}))
        return function(*args, **kwargs)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.tensor.cpu().numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensor)

    def __getitem__(self, index: Any) -> Any:
        return self.tensor[index]

    def __getattr__(self, name: str) -> Any:
        # Not what copying and pickling look for, nor again what has just failed to be made.
        if name.startswith("_") or name in ("tensor", "shape"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.tensor, name)


def _on_the_tensor(name: str) -> Callable[..., Any]:
    return lambda self, *others: getattr(self.tensor, name)(*(_made(other) for other in others))


for _operator in ("add", "sub", "mul", "truediv", "and", "or", "xor"):
    for _name in (f"__{_operator}__", f"__r{_operator}__"):
        setattr(LazyTensor, _name, _on_the_tensor(_name))
for _operator in ("lt", "le", "gt", "ge", "eq", "ne", "invert", "neg"):
    setattr(LazyTensor, f"__{_operator}__", _on_the_tensor(f"__{_operator}__"))


def _made(value: Any) -> Any:
    return value.tensor if isinstance(value, LazyTensor) else value
