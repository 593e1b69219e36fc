"""The least time that a GPU needs: each operation at the roof of its arithmetic or of its memory.

The roofline of Williams, Waterman and Patterson (2009), one operation after another as PyTorch
runs them without compilation: an operation reads its inputs from memory and writes its outputs.
Starting a kernel takes no time here, and no operation waits for another, so it is a bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_ATEN = torch.ops.aten
# Memory without values; what reads a part of its first input, written to the output; what writes
# without reading; and what writes a part of its first input, its last one.
_NO_KERNEL = {_ATEN.empty, _ATEN.empty_like, _ATEN.empty_strided, _ATEN.new_empty}
_GATHERING = {_ATEN.index, _ATEN.embedding, _ATEN.index_select, _ATEN.gather}
_OVERWRITING = {_ATEN.copy_, _ATEN.fill_, _ATEN.zero_, _ATEN.zeros_like, _ATEN.ones_like}
_OVERWRITING |= {_ATEN.full_like, _ATEN.new_zeros, _ATEN.new_full}
_SCATTERING = {_ATEN.index_put_, _ATEN._index_put_impl_, _ATEN.index_copy_, _ATEN.index_add_}


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do at most.

    Attributes:
        name: its name.
        flops_per_second: of dense matrix products, by the type of their inputs.
        bytes_per_second: to and from its memory.
    """

    name: str
    flops_per_second: Mapping[torch.dtype, float]
    bytes_per_second: float


# NVIDIA's data sheet (SXM), without sparsity. PyTorch multiplies float32 without TF32 (494) unless
# it is told otherwise.
H200 = Gpu(
    "H200",
    {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 67e12},
    4.8e12,
)


@dataclass(frozen=True)
class Work:
    """What a part of a step or of a batch asks of a GPU.

    Attributes:
        flops: of matrix products, convolutions and attention; a multiply-add is two.
        bytes_moved: read and written, operation by operation.
        seconds: the sum of the times of all operations at their roofs.
        bound_by_arithmetic: those of these seconds in which arithmetic is the roof.
        operations: kernels, at least.
    """

    flops: float
    bytes_moved: float
    seconds: float
    bound_by_arithmetic: float
    operations: float

    @property
    def intensity(self) -> float:
        """Operations a byte; NaN where nothing is moved."""
        return self.flops / self.bytes_moved if self.bytes_moved else math.nan


class RoofCounter(TorchDispatchMode):
    """Adds up the work of all operations on tensors of the device "cuda".

    It reads shapes, types and schemas only, so tensors need no values (`pretended_gpu`).

    Attributes:
        totals: float64 (5,), the attributes of `Work` in order, since the start.
    """

    def __init__(self, gpu: Gpu = H200) -> None:
        """
        Args:
            gpu: whose roofs.
        """
        super().__init__()
        self.totals = np.zeros(5)
        self._gpu = gpu
        self._formulas = FlopCounterMode(display=False).flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        moved = moved_bytes(func, args, kwargs, output)
        if moved:
            formula = self._formulas.get(func.overloadpacket)
            flops = 0 if formula is None else formula(*args, **kwargs, out_val=output)
            self._add(flops, moved, _on_gpu((args, kwargs)))
        return output

    def _add(self, flops: int, moved: int, inputs: list[Tensor]) -> None:
        computing = 0.0
        if flops:
            dtype = next(tensor.dtype for tensor in inputs if tensor.is_floating_point())
            computing = flops / self._gpu.flops_per_second[dtype]
        moving = moved / self._gpu.bytes_per_second
        bound = computing if computing > moving else 0.0
        self.totals += flops, moved, max(computing, moving), bound, 1


def moved_bytes(func: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> int:
    """Bytes that an operation of ATen reads from and writes to the memory of the GPU.

    Args:
        func: the operation's overload.
        args: its arguments.
        kwargs: its named arguments.
        output: what it returned; views of the arguments count nothing.
    """
    kind, schema = func.overloadpacket, func._schema
    if kind in _NO_KERNEL:
        return 0
    inputs = _on_gpu((args, kwargs))
    if schema.is_mutable:
        given = zip(schema.arguments, args, strict=False)
        written = _on_gpu(
            [value for known, value in given if known.alias_info and known.alias_info.is_write]
        )
    else:
        known = {_storage(tensor) for tensor in inputs}
        written = [tensor for tensor in _on_gpu(output) if _storage(tensor) not in known]
        if not written:
            return 0
    if kind in _SCATTERING:
        return 2 * _bytes(inputs[-1:]) + _bytes(inputs[1:])
    if kind in _GATHERING:
        return 2 * _bytes(written) + _bytes(inputs[1:])
    if kind in _OVERWRITING:
        inputs = inputs[1:]
    return _bytes(inputs) + _bytes(written)


def _on_gpu(values: Any) -> list[Tensor]:
    leaves = tree_leaves(values)
    return [v for v in leaves if isinstance(v, Tensor) and v.device.type == "cuda"]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of what lies in memory: an expanded tensor's values are there once."""
    total = 0
    for tensor in tensors:
        sides = zip(tensor.shape, tensor.stride(), strict=True)
        total += tensor.element_size() * math.prod(n for n, step in sides if step or not n)
    return total


def report_work(title: str, parts: Mapping[str, Work], num_images: int, gpu: Gpu = H200) -> str:
    """Write a table: work and least time by part, and images a second at the roof.

    Args:
        title: what the work is.
        parts: by name, one after another.
        num_images: that they are done for.
        gpu: that they were counted for.
    """
    total = Work(*(sum(getattr(part, key) for part in parts.values()) for key in _KEYS))
    lines = [f"{title}, on an {gpu.name} at its roofs", _HEADER]
    for name, part in [*parts.items(), ("all", total)]:
        share = 100 * part.bound_by_arithmetic / part.seconds if part.seconds else 0.0
        lines.append(
            f"{part.flops / 1e12:10.3f} {part.bytes_moved / 1e9:10.2f} {part.intensity:10.0f} "
            f"{1000 * part.seconds:10.2f} {share:10.0f} % {part.operations:10.0f}  {name}"
        )
    lines.append(f"    at most {num_images / total.seconds:.1f} images a second")
    return "\n".join(lines)


_KEYS = tuple(Work.__dataclass_fields__)
_HEADER = "     TFLOP         GB  FLOP/byte         ms   arithmetic operations"
