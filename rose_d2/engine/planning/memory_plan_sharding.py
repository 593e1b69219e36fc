"""Bytes per GPU of weights, gradients and optimizer, for each step engine and ZeRO stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from detectron2.config import CfgNode
from torch import nn

from rose_d2.engine.steps.deepspeed_config import deepspeed_config
from rose_d2.engine.steps.step_engine import amp_dtype

# What becomes of a parameter's gradient during a backward pass: it appears there and stays
# ("made"), or goes at once into a sum or a buffer that exists already ("moved").
GradientLife = Literal["made", "moved"]

FLOAT32_BYTES = 4
# DeepSpeed's defaults (deepspeed/runtime/zero/config.py), in elements.
_REDUCE_BUCKET = 500_000_000
_MAX_LIVE = 1_000_000_000
_SUB_GROUP = 1_000_000_000


@dataclass(frozen=True)
class StepState:
    """What one GPU holds beside the activations, in bytes.

    Attributes:
        weights: of the model, the frozen ones too.
        gradients: kept from one micro-batch to the next; where `gradient_life` is "made" they
            also show among what the backward pass makes.
        optimizer: moments, and the float32 copy of the weights where there is one.
        communication: buffers of gradients or weights on their way between GPUs.
        update: made while the optimizer steps and freed afterwards.
        gradient_life: see `GradientLife`.
    """

    weights: int
    gradients: int
    optimizer: int
    communication: int
    update: int
    gradient_life: GradientLife


def step_state(cfg: CfgNode, model: nn.Module, num_gpus: int) -> StepState:
    """Work out the state of `SOLVER.ENGINE` on each of some GPUs.

    Args:
        cfg: the full config; MODEL.DEVICE "cpu" plans for the CPU.
        model: built from it; the weights need no values.
        num_gpus: processes, one per GPU.

    Raises:
        ValueError: the engine is unknown or its settings contradict each other.
    """
    if cfg.SOLVER.ENGINE == "torch":
        return _torch_state(cfg, model, num_gpus)
    if cfg.SOLVER.ENGINE == "deepspeed":
        return _deepspeed_state(cfg, model, num_gpus)
    raise ValueError(
        f"SOLVER.ENGINE is {cfg.SOLVER.ENGINE!r}; memory can be planned for torch and deepspeed."
    )


def _torch_state(cfg: CfgNode, model: nn.Module, num_gpus: int) -> StepState:
    """Everything is on every GPU; AdamW keeps two moments in the type of the weights."""
    trained = [p.numel() * p.element_size() for p in model.parameters() if p.requires_grad]
    # On a GPU AdamW handles all parameters together, with one copy of them for the root of the
    # second moment; on the CPU one after the other, with two copies of the one at hand.
    update = 2 * max(trained) if cfg.MODEL.DEVICE == "cpu" else sum(trained)
    return StepState(
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        gradients=sum(trained),
        optimizer=2 * sum(trained),
        # DistributedDataParallel copies gradients into buckets.
        communication=sum(trained) if num_gpus > 1 else 0,
        update=update,
        gradient_life="moved" if cfg.SOLVER.ACCUMULATION_STEPS > 1 else "made",
    )


def _deepspeed_state(cfg: CfgNode, model: nn.Module, num_gpus: int) -> StepState:
    """ZeRO: the optimizer is divided (1), the gradients too (2), the weights too (3)."""
    zero = deepspeed_config(cfg, num_gpus)["zero_optimization"]
    width = deepspeed_weight_bytes(cfg)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = -(-trained // num_gpus)
    bucket = int(zero.get("reduce_bucket_size", _REDUCE_BUCKET))
    # A float32 copy of the weights and two moments.
    optimizer = 3 * FLOAT32_BYTES * share
    if zero["stage"] == 1:
        # With bfloat16 the gradients are added up in float32, beside those just made.
        added_up = FLOAT32_BYTES * trained if width < FLOAT32_BYTES else 0
        communication = bucket * width
        return StepState(
            width * total, added_up + width * trained, optimizer, communication, 0, "made"
        )
    if zero["stage"] == 2:
        copies = 2 if zero.get("overlap_comm", False) else 1
        return StepState(
            weights=width * total,
            gradients=FLOAT32_BYTES * share,
            optimizer=optimizer,
            communication=copies * bucket * width,
            update=FLOAT32_BYTES * share,
            gradient_life="moved",
        )
    return _weights_divided(zero, total, share, width, optimizer, num_gpus, bucket)


def _weights_divided(
    zero: dict[str, Any],
    total: int,
    share: int,
    width: int,
    optimizer: int,
    num_gpus: int,
    bucket: int,
) -> StepState:
    live = min(total, int(zero.get("stage3_max_live_parameters", _MAX_LIVE)))
    sub_group = min(share, int(zero.get("sub_group_size", _SUB_GROUP)))
    return StepState(
        weights=width * -(-total // num_gpus),
        gradients=FLOAT32_BYTES * share,
        optimizer=optimizer,
        # The weights of the layers at work are whole for a while.
        communication=width * (bucket + (live if num_gpus > 1 else 0)),
        update=FLOAT32_BYTES * sub_group,
        gradient_life="moved",
    )


def deepspeed_weight_bytes(cfg: CfgNode) -> int:
    """Bytes per weight under DeepSpeed: with mixed precision it casts the whole model."""
    dtype = amp_dtype(cfg)
    return FLOAT32_BYTES if dtype is None else dtype.itemsize
