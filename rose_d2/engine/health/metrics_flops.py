"""Floating-point operations of a training step by phase, and the peak a device reaches."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

# Side of the square matrices whose product measures a device, and how often it is repeated.
_SIDE = {"cuda": 8192, "cpu": 1024}
_REPETITIONS = 3


class StepFlops(TorchDispatchMode):
    """Counts the operations of a real training step while it runs; its numbers stay the same.

    `FlopCounterMode` changes the order in which gradients are added up, and with it their last
    bits, so only its formulas are used here: matrix products, convolutions and attention count, a
    multiply-add is two. Model FLOPs utilisation (PaLM, appendix B) leaves out what gradient
    checkpointing computes a second time, so that is counted apart.

    Attributes:
        forward: operations of all forward passes.
        backward: of all backward passes, without recomputation.
        recomputed: of forward passes repeated in the backward pass.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: the unwrapped model.
        """
        super().__init__()
        self.forward = self.recomputed = self.backward = 0
        self._model = model
        self._submodules = {id(module) for module in model.modules() if module is not model}
        self._formulas = FlopCounterMode(display=False).flop_registry
        self._handles: list[RemovableHandle] = []
        self._in_forward = False
        # How many submodules are being called outside the model's own forward pass.
        self._depth = 0

    @property
    def model_flops(self) -> int:
        """What the step needs: forward and backward without recomputation."""
        return self.forward + self.backward

    def __enter__(self) -> StepFlops:
        self._handles = [
            self._model.register_forward_pre_hook(lambda *_: self._set_in_forward(True)),
            self._model.register_forward_hook(lambda *_: self._set_in_forward(False)),
            register_module_forward_pre_hook(lambda module, *_: self._call(module, 1)),
            # Recomputation is broken off by an exception once it has all it needs.
            register_module_forward_hook(
                lambda module, *_: self._call(module, -1), always_call=True
            ),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        formula = self._formulas.get(getattr(func, "overloadpacket", None))
        if formula is not None:
            self._add(formula(*args, **kwargs, out_val=output))
        return output

    def _add(self, flops: int) -> None:
        if self._in_forward:
            self.forward += flops
        # A backward pass calls no module and needs no gradient; custom functions switch it off.
        elif self._depth or torch.is_grad_enabled():
            self.recomputed += flops
        else:
            self.backward += flops

    def _set_in_forward(self, value: bool) -> None:
        self._in_forward = value

    def _call(self, module: nn.Module, change: int) -> None:
        if not self._in_forward and id(module) in self._submodules:
            self._depth += change


@functools.cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure how many operations per second the device makes in a large matrix product.

    Args:
        device: where; on the CPU with the threads this process has.
        dtype: of the matrices.

    Returns:
        Operations per second, the best of some repetitions.
    """
    side = _SIDE["cuda" if device.type == "cuda" else "cpu"]
    # A generator of its own, so that training draws the numbers it would draw anyway.
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.rand(side, side, generator=generator, device=device).to(dtype)
    seconds = [_seconds_of_product(matrix) for _ in range(1 + _REPETITIONS)]
    return 2 * side**3 / min(seconds[1:])


def _seconds_of_product(matrix: torch.Tensor) -> float:
    _wait_for(matrix.device)
    start = time.perf_counter()
    matrix @ matrix
    _wait_for(matrix.device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
