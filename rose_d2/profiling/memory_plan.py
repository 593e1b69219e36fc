"""How much memory one GPU needs for training or inference, before any GPU is there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from torch import nn

from rose_d2.engine.optimizer import train_in_float32
from rose_d2.engine.step_engine import amp_dtype
from rose_d2.modeling.meta_arch.rose import ROSE
from rose_d2.profiling.inputs import MANY_OBJECTS, without_downloads
from rose_d2.profiling.memory_model import (
    StepState,
    build_without_memory,
    inference_activations,
    step_state,
    training_activations,
)

# Bytes per weight of a linear layer by MODEL.LMM.QUANTIZE: 8 bits and a float32 scale per row
# (left out here); NF4 has a float32 scale per 64 weights.
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU.

    Attributes:
        title: what is planned.
        rows: by what needs them; not all of them at the same moment.
        moments: the sum of those that are needed together, by moment.
    """

    title: str
    rows: dict[str, int] = field(default_factory=dict)
    moments: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The fullest moment."""
        return max(self.moments.values())


def plan_training(cfg: CfgNode, num_gpus: int, num_objects: int = MANY_OBJECTS) -> MemoryPlan:
    """Plan one optimizer step, unless told otherwise at the largest load: images full of objects.

    Args:
        cfg: the full config; MODEL.DEVICE "cpu" plans for the CPU.
        num_gpus: processes that share SOLVER.IMS_PER_BATCH.
        num_objects: in each image.

    Raises:
        ValueError: the images cannot be shared evenly, or see `step_state`.
    """
    if cfg.SOLVER.IMS_PER_BATCH % num_gpus:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {num_gpus} GPUs cannot "
            f"share: use a multiple of {num_gpus}."
        )
    cfg = without_downloads(cfg)
    # With mixed precision DeepSpeed casts the whole model.
    dtype = amp_dtype(cfg) if cfg.SOLVER.ENGINE == "deepspeed" else None
    model = build_without_memory(cfg, dtype)
    if cfg.SOLVER.ENGINE == "torch":
        train_in_float32(model)
    state = step_state(cfg, model, num_gpus)
    batch_size = cfg.SOLVER.IMS_PER_BATCH // num_gpus
    life = state.gradient_life
    activations = training_activations(cfg, model, batch_size, life, num_objects)
    recomputed = "with" if cfg.MODEL.LMM.GRADIENT_CHECKPOINTING else "without"
    return MemoryPlan(
        f"training, {batch_size} images of {num_objects} objects per GPU, {recomputed} gradient "
        "checkpointing",
        _rows(state, activations),
        _moments(state, activations, _buffer_bytes(model)),
    )


def plan_inference(cfg: CfgNode, batch_size: int) -> list[MemoryPlan]:
    """Plan inference with TEST.TOP_K candidates, all of which are kept and named.

    Args:
        cfg: the full config.
        batch_size: images at once.

    Returns:
        A plan for the language model's layers as MODEL.LMM.QUANTIZE has them; where it is none,
        one in bfloat16 and one for each of `QUANTIZED_BYTES`. The rest of the LMM is in bfloat16,
        SAM and heads as they are.
    """
    cfg = without_downloads(cfg)
    asked = cfg.MODEL.LMM.QUANTIZE
    cfg.MODEL.LMM.DTYPE, cfg.MODEL.LMM.QUANTIZE = "bfloat16", "none"
    model = build_without_memory(cfg)
    stages = inference_activations(cfg, model, batch_size)
    plans = []
    for precision in ("bf16", *QUANTIZED_BYTES) if asked == "none" else (asked,):
        weights = _bytes(model) - _saved_by(model, precision) + _buffer_bytes(model)
        # A layer in 4 bits is unpacked before it is multiplied.
        unpacked = _largest_linear(model) if precision == "nf4" else 0
        plans.append(
            MemoryPlan(
                f"inference in {precision}, {batch_size} images, top {cfg.TEST.TOP_K}",
                {"weights": weights, **stages},
                {name: weights + unpacked + peak for name, peak in stages.items()},
            )
        )
    return plans


def _rows(state: StepState, activations: int) -> dict[str, int]:
    return {
        "weights": state.weights,
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "communication buffers": state.communication,
        "activations": activations,
        "while the optimizer steps": state.update,
    }


def _moments(state: StepState, activations: int, buffers: int) -> dict[str, int]:
    always = state.weights + state.optimizer + state.communication + buffers
    # Gradients that the backward pass makes are counted with what it makes.
    kept = 0 if state.gradient_life == "made" else state.gradients
    return {
        "forward and backward": always + kept + activations,
        "optimizer step": always + state.gradients + state.update,
    }


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _buffer_bytes(model: nn.Module) -> int:
    return sum(b.numel() * b.element_size() for b in model.buffers())


def _quantizable(model: ROSE) -> list[torch.Tensor]:
    """Weights of the language model's linear layers, but for adapters."""
    language_model: nn.Module = model.backbone.model.model.language_model
    return [
        module.weight
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    ]


def _saved_by(model: ROSE, precision: str) -> int:
    if precision not in QUANTIZED_BYTES:
        return 0
    weights = _quantizable(model)
    before = sum(w.numel() * w.element_size() for w in weights)
    return before - int(sum(w.numel() for w in weights) * QUANTIZED_BYTES[precision])


def _largest_linear(model: ROSE) -> int:
    return max(w.numel() * w.element_size() for w in _quantizable(model))
