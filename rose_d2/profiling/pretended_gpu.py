"""A GPU that is not there: tensors with a shape, a type and the device "cuda", but no values.

Code runs on it as on a real one, whatever the size of the model, on a machine without a GPU. What a
GPU would refuse (tensors of two devices in one operation) fails, and so does what would make the
CPU wait for it (reading a value). Tensors on the CPU are real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventStorage
from torch import Tensor

# The tensors of torch.compile and torch.export; documented under "Fake tensor" there.
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rose_d2.engine.metrics import StepFlops
from rose_d2.engine.optimizer import build_optimizer
from rose_d2.engine.step_engine import amp_dtype
from rose_d2.modeling.meta_arch.rose import ROSE
from rose_d2.profiling.inputs import FEW_OBJECTS, synthetic_inputs, without_downloads
from rose_d2.profiling.memory_model import AllKept, LiveBytes
from rose_d2.profiling.roofline import RoofCounter, Work
from rose_d2.profiling.steps import Clock, PartTimes

_GRAPH_TASK = 1


class PretendedGpu(FakeTensorMode):
    """While it is active, whatever is made on the device "cuda" has no values.

    PyTorch's own fake mode takes the values of all tensors. What a data worker makes has some,
    and the step decides by them on the CPU.
    """

    avoid_device_init = True  # also where a GPU is there

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            is_on_gpu = isinstance(leaf, torch.device) and leaf.type == "cuda"
            if is_on_gpu or isinstance(leaf, FakeTensor):
                return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs)


class _FusedAttention(TorchFunctionMode):
    """Attention by a kernel that never holds its matrix, as on a real GPU.

    PyTorch finds none for tensors without values, and would multiply matrices in float32.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and isinstance(args[0], FakeTensor):
            return _fused_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The arguments and the result are those of `F.scaled_dot_product_attention`."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = bias.masked_fill(~attn_mask, -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    keeps_sums = torch.is_grad_enabled() and query.requires_grad
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, keeps_sums, dropout_p, is_causal, scale=scale
    )[0]


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """Pretend a GPU, in all that PyTorch itself asks for one: autocast and recomputation."""
    with ExitStack() as stack:
        absent = "torch.cuda.amp.common.amp_definitely_not_available"
        stack.enter_context(mock.patch(absent, return_value=False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        stack.enter_context(_FusedAttention())
        yield stack.enter_context(PretendedGpu())


@dataclass(frozen=True)
class PretendedCost:
    """What a step or a batch takes.

    Attributes:
        parts: the work by part, "everything else" makes up the rest; of a training step also
            "backward", what is recomputed included, and "optimizer".
        peak_memory: bytes of what it makes on the GPU, at the fullest moment, weights left out.
        recomputed_flops: operations that "backward" does a second time.
    """

    parts: dict[str, Work]
    peak_memory: int
    recomputed_flops: int = 0

    @property
    def flops(self) -> dict[str, float]:
        """Operations by part."""
        return {name: work.flops for name, work in self.parts.items()}


def training_step(cfg: CfgNode, batch_size: int, num_objects: int = FEW_OBJECTS) -> PretendedCost:
    """Run a whole optimizer step in the true size: forward, backward, AdamW.

    Args:
        cfg: the full config; its checkpoints are not read. With DeepSpeed all weights are in the
            type of SOLVER.AMP, as it casts them.
        batch_size: images.
        num_objects: in each of them.

    Raises:
        RuntimeError: from PyTorch, for what a GPU would refuse or would be waited for.
    """
    cfg = without_downloads(cfg)
    cfg.MODEL.DEVICE = "cuda"
    dtype = amp_dtype(cfg)
    inputs = synthetic_inputs(cfg, batch_size, training=True, num_objects=num_objects)
    with pretended_gpu(), EventStorage():
        model = _build(cfg, dtype if cfg.SOLVER.ENGINE == "deepspeed" else None).train()
        optimizer = build_optimizer(cfg, model)
        live, counted = LiveBytes(list(model.parameters()), "cuda"), StepFlops(model)
        with live, counted, RoofCounter() as roof:
            with _PartWork(model, roof) as parts:
                with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
                    losses = model(inputs)
                work = parts.work()
            backward(torch.stack([*losses.values()]).sum())
            work |= parts.rest("backward")
            del losses
            optimizer.step()
            work |= parts.rest("optimizer")
        without = [
            name for name, p in model.named_parameters() if p.requires_grad and p.grad is None
        ]
        assert not without, f"no gradient for {without}"
    return PretendedCost(work, live.peak, counted.recomputed)


@torch.no_grad()
def inference(cfg: CfgNode, batch_size: int) -> PretendedCost:
    """Run whole inference in the true size; all of TEST.TOP_K candidates are kept and named.

    What is kept, the order of the candidates and where a name ends need values: `AllKept` decides
    them, and only them.

    Args:
        cfg: the full config; its checkpoints are not read.
        batch_size: images.

    Raises:
        RuntimeError: from PyTorch, for what a GPU would refuse.
    """
    cfg = without_downloads(cfg)
    cfg.MODEL.DEVICE = "cuda"
    inputs = synthetic_inputs(cfg, batch_size, training=False)
    with pretended_gpu():
        model = _build(cfg).eval()
        live, roof = LiveBytes(list(model.parameters()), "cuda"), RoofCounter()
        with live, roof, _PartWork(model, roof) as parts, AllKept():
            model(inputs)
        work = parts.work()
    return PretendedCost(work, live.peak)


def _build(cfg: CfgNode, dtype: torch.dtype | None = None) -> ROSE:
    """The model on the pretended GPU; without values there is nothing to draw at random."""
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    model.to(dtype).to_empty(device="cuda")
    model.backbone.model.tie_weights()
    return model


class _PartWork(PartTimes):
    """Work in place of moments."""

    def __init__(self, model: ROSE, counted: RoofCounter) -> None:
        super().__init__(model)
        self.clock = _WorkClock(counted)
        self._told = self.clock.mark()

    def work(self) -> dict[str, Work]:
        """Of each part, and of everything else, since the last call."""
        parts = self.seconds()
        others = self._since_told() - sum(parts.values())
        return {name: Work(*totals) for name, totals in parts.items()} | {
            "everything else": Work(*others)
        }

    def rest(self, name: str) -> dict[str, Work]:
        """All since the last call, as one part."""
        return {name: Work(*self._since_told())}

    def _since_told(self) -> np.ndarray:
        before, self._told = self._told, self.clock.mark()
        return self._told - before


class _WorkClock(Clock):
    def __init__(self, counted: RoofCounter) -> None:
        self._counted = counted

    def mark(self) -> np.ndarray:
        return self._counted.totals.copy()

    def seconds(self, start: np.ndarray, end: np.ndarray) -> Any:
        return end - start


def backward(loss: Tensor) -> None:
    """Do `loss.backward()` without PyTorch's engine, which needs streams of a real GPU.

    Every node of the graph is run once, when all that follow it have been; what it kept is freed
    as soon as nothing needs it. Checkpointed layers are computed again, once.

    Args:
        loss: a scalar.
    """
    assert loss.grad_fn is not None, "nothing in the loss trains"
    waiting = _count_uses(loss.grad_fn)
    ready: list[tuple[Node, list[Tensor | None]]] = [(loss.grad_fn, [torch.ones_like(loss)])]
    collected: dict[Node, list[Tensor | None]] = {}
    del loss
    task = mock.patch.object(torch._C, "_current_graph_task_id", lambda: _GRAPH_TASK)
    with torch.no_grad(), task:
        while ready:
            node, gradients = ready.pop()
            results = node(*gradients)
            results = results if isinstance(results, tuple) else (results,)
            for (following, place), gradient in zip(node.next_functions, results, strict=False):
                if following is None:
                    continue
                _collect(collected.setdefault(following, []), following, place, gradient)
                waiting[following] -= 1
                if not waiting[following]:
                    del waiting[following]
                    ready.append((following, collected.pop(following)))
            del node, gradients, results


def _count_uses(root: Node) -> dict[Node, int]:
    """How many gradients each node gets."""
    uses: dict[Node, int] = {root: 0}
    stack = [root]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is None:
                continue
            if following not in uses:
                uses[following] = 0
                stack.append(following)
            uses[following] += 1
    del uses[root]
    return uses


def _collect(
    gradients: list[Tensor | None], node: Node, place: int, gradient: Tensor | None
) -> None:
    """Add to a node's gradients, in the shape and the type that it made."""
    made = node._input_metadata
    gradients.extend([None] * (len(made) - len(gradients)))
    if gradient is not None:
        gradient = gradient.sum_to_size(made[place].shape).to(made[place].dtype)
        known = gradients[place]
        gradients[place] = gradient if known is None else known + gradient
