"""Floating-point operations of what a function computes, counted and not estimated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations; a multiply-add counts as two.

    Attributes:
        forward: of the function itself.
        backward: of differentiating its result; with gradient checkpointing the recomputed part
            of the forward pass is in here too. 0 where nothing was differentiated.
        operators: both together by operator of PyTorch, largest first.
    """

    forward: int
    backward: int
    operators: dict[str, int]

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def count_flops(
    function: Callable[[], torch.Tensor | Mapping[str, torch.Tensor] | object],
    *,
    backward: bool = False,
) -> FlopCount:
    """Run a function once and count the operations of its matrix products and convolutions.

    `torch.utils.flop_counter` counts what the dispatcher sees: matrix products, convolutions and
    attention (every key counts, also the masked ones); additions, norms and softmax count
    nothing. Tensors on the meta device and fake tensors are counted like real ones.

    For model FLOPs utilisation (PaLM, appendix B) recomputation must not count: build the model
    with MODEL.LMM.GRADIENT_CHECKPOINTING False. Frozen weights need no gradient of their own,
    and none is counted for them.

    Args:
        function: what to run, for example `lambda: model(batched_inputs)`.
        backward: also differentiate its result, a scalar or a mapping of scalars that are summed.

    Returns:
        The counts. Gradients of parameters are left behind as after any backward pass.

    Raises:
        TypeError: `backward` is set and the result is neither a tensor nor a mapping of tensors.
    """
    with FlopCounterMode(display=False) as counter:
        result = function()
        forward = counter.get_total_flops()
        if backward:
            _loss(result).backward()
    operators = counter.get_flop_counts().get("Global", {})
    by_size = sorted(operators.items(), key=lambda item: -item[1])
    return FlopCount(
        forward=forward,
        backward=counter.get_total_flops() - forward,
        operators={str(name): flops for name, flops in by_size},
    )


def _loss(result: object) -> torch.Tensor:
    if isinstance(result, torch.Tensor):
        return result
    if isinstance(result, Mapping) and result:
        return torch.stack(list(result.values())).sum()
    raise TypeError(
        f"The function returned {type(result).__name__}; to count the backward pass it must "
        "return a loss, or a dict of losses as the model does in training."
    )
