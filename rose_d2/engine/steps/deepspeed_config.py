"""DeepSpeed's settings, made from the detectron2 config and merged with a user's own JSON."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from detectron2.config import CfgNode

from rose_d2.engine.steps.step_engine import accumulation_steps, amp_dtype, max_grad_norm

# What the detectron2 config decides, and where a user changes it there.
_DECIDED_BY = {
    "train_batch_size": "SOLVER.IMS_PER_BATCH times SOLVER.ACCUMULATION_STEPS",
    "train_micro_batch_size_per_gpu": "SOLVER.IMS_PER_BATCH divided by the number of processes",
    "gradient_accumulation_steps": "SOLVER.ACCUMULATION_STEPS",
    "gradient_clipping": "SOLVER.CLIP_GRADIENTS",
    "optimizer.type": "the recipe",
    "optimizer.params.lr": "SOLVER.BASE_LR",
    "optimizer.params.weight_decay": "SOLVER.WEIGHT_DECAY",
    "scheduler.type": "the recipe",
    "scheduler.params.warmup_min_lr": "the recipe",
    "scheduler.params.warmup_max_lr": "SOLVER.BASE_LR",
    "scheduler.params.warmup_num_steps": "SOLVER.WARMUP_ITERS",
    "scheduler.params.total_num_steps": "SOLVER.MAX_ITER",
    "scheduler.params.warmup_type": "the recipe",
    "zero_optimization.stage": "SOLVER.DEEPSPEED.ZERO_STAGE",
    "bf16.enabled": "SOLVER.AMP",
    "fp16.enabled": "SOLVER.AMP",
    "torch_autocast.enabled": "SOLVER.AMP",
}
_ZERO_STAGES = (1, 2, 3)


def deepspeed_config(cfg: CfgNode, world_size: int) -> dict[str, Any]:
    """Make the dictionary that `deepspeed.initialize` takes.

    Args:
        cfg: the full config; `SOLVER.DEEPSPEED.CONFIG_FILE` is merged over what it says.
        world_size: processes that share `SOLVER.IMS_PER_BATCH`.

    Raises:
        ValueError: a setting is out of range, or the JSON contradicts the config; every
            contradiction is listed with both values.
        FileNotFoundError: there is no such JSON.
    """
    settings = _from_solver(cfg, world_size)
    path = os.path.expanduser(cfg.SOLVER.DEEPSPEED.CONFIG_FILE)
    if path:
        contradictions: list[str] = []
        merged = _merge(settings, _read_json(path), "", contradictions)
        if contradictions:
            raise ValueError(
                f"SOLVER.DEEPSPEED.CONFIG_FILE {path} contradicts the config:\n  "
                + "\n  ".join(contradictions)
                + '\nLeave these out of the JSON or write "auto" there, or change the config.'
            )
        settings = merged
    if not settings["optimizer"]["params"]["torch_adam"]:
        settings["optimizer"]["params"].pop("fused", None)  # DeepSpeed's own does not know it
    del settings["train_batch_size"]  # follows from the others
    return settings


def _from_solver(cfg: CfgNode, world_size: int) -> dict[str, Any]:
    solver = cfg.SOLVER
    if solver.DEEPSPEED.ZERO_STAGE not in _ZERO_STAGES:
        raise ValueError(
            f"SOLVER.DEEPSPEED.ZERO_STAGE is {solver.DEEPSPEED.ZERO_STAGE}: use one of "
            f"{_ZERO_STAGES}, or SOLVER.ENGINE torch to divide nothing."
        )
    if solver.IMS_PER_BATCH % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, which {world_size} processes "
            f"cannot share: use a multiple of {world_size}."
        )
    dtype, has_gpu = amp_dtype(cfg), cfg.MODEL.DEVICE != "cpu"
    per_process, accumulated = solver.IMS_PER_BATCH // world_size, accumulation_steps(cfg)
    return {
        "train_batch_size": solver.IMS_PER_BATCH * accumulated,
        "train_micro_batch_size_per_gpu": per_process,
        "gradient_accumulation_steps": accumulated,
        "gradient_clipping": max_grad_norm(cfg) or 0.0,
        "steps_per_print": None,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": solver.BASE_LR,
                "weight_decay": solver.WEIGHT_DECAY,
                # PyTorch's AdamW: DeepSpeed's own is compiled on first use, which needs nvcc.
                "torch_adam": True,
                **({"fused": True} if has_gpu else {}),
            },
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": 0.0,
                "warmup_max_lr": solver.BASE_LR,
                "warmup_num_steps": max(2, solver.WARMUP_ITERS),
                "total_num_steps": solver.MAX_ITER,
                "warmup_type": "linear",  # DeepSpeed's default is logarithmic
            },
        },
        "zero_optimization": {
            "stage": solver.DEEPSPEED.ZERO_STAGE,
            "contiguous_gradients": True,
            "overlap_comm": has_gpu,
        },
        "bf16": {"enabled": dtype is torch.bfloat16},
        "fp16": {"enabled": dtype is torch.float16},
        "torch_autocast": {"enabled": False},
        # Ten micro-batches would lose bits if they were added up in bfloat16.
        "data_types": {"grad_accum_dtype": "fp32"},
    }


def _merge(
    ours: dict[str, Any], theirs: dict[str, Any], prefix: str, contradictions: list[str]
) -> dict[str, Any]:
    """Return `ours` with `theirs` over it; what may not differ is added to `contradictions`."""
    merged = dict(ours)
    for key, value in theirs.items():
        path = prefix + key
        if value == "auto":  # as in Hugging Face's trainer: the config decides
            continue
        if isinstance(value, dict) and isinstance(ours.get(key, {}), dict):
            merged[key] = _merge(ours.get(key, {}), value, f"{path}.", contradictions)
        elif path in _DECIDED_BY and value != ours[key]:
            contradictions.append(
                f"{path} is {value!r}, but {_DECIDED_BY[path]} makes it {ours[key]!r}"
            )
        else:
            merged[key] = value
    return merged


def _read_json(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"SOLVER.DEEPSPEED.CONFIG_FILE {path} does not exist: give a JSON file, or an empty "
            "string for none."
        )
    with open(path, encoding="utf-8") as file:
        try:
            settings = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"SOLVER.DEEPSPEED.CONFIG_FILE {path} is not valid JSON ({error}): mend it there."
            ) from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"SOLVER.DEEPSPEED.CONFIG_FILE {path} holds a {type(settings).__name__}: DeepSpeed's "
            "settings are one JSON object."
        )
    if "bfloat16" in settings:  # DeepSpeed's older spelling
        settings["bf16"] = settings.pop("bfloat16")
    return settings
