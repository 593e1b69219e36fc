"""The optimizer state that ZeRO divides among processes, gathered and put back by parameter name.

This takes the place of DeepSpeed's universal checkpoints: what is gathered does not depend on
ZeRO stage, number of processes or precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from rose_d2.engine.steps.optimizer_state import trained_parameters

_MOMENTS = ("exp_avg", "exp_avg_sq")


def gather_optimizer_state(engine: Any, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Gather AdamW's state, one parameter after the other; every rank has to call it.

    Args:
        engine: a `DeepSpeedEngine`.
        model: the unwrapped model in it.

    Returns:
        See `StepEngine.state_dict`; empty before the first step and on other ranks than 0.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    steps = [int(state["step"]) for state in engine.basic_optimizer.state.values()]
    if not steps:
        return {}
    _link(engine)
    states: dict[str, dict[str, Any]] = {}
    for name, parameter in trained_parameters(model):
        gathered = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
        if parameter.dtype != torch.float32:
            gathered["master"] = safe_get_full_fp32_param(parameter)
        if comm.is_main_process():
            copies = {
                key: tensor.to("cpu", torch.float32, copy=True) for key, tensor in gathered.items()
            }
            states[name] = {**copies, "step": max(steps)}
    return states


def put_optimizer_state(
    engine: Any, model: nn.Module, states: Mapping[str, Mapping[str, Any]]
) -> None:
    """Give each rank its part of a state from `gather_optimizer_state` of any run.

    Parameters the state lacks keep moments of zero. DeepSpeed counts steps for all parameters
    together, so all get the largest count.

    Args:
        engine: a `DeepSpeedEngine` that has made no step, or any later one.
        model: the unwrapped model in it.
        states: whole tensors, on every rank.
    """
    _allocate(engine)
    _link(engine)
    for name, parameter in trained_parameters(model):
        if name not in states:
            continue
        for key in _MOMENTS:
            _put(parameter, states[name][key], key)
        if "master" in states[name]:
            _put(parameter, states[name]["master"], None)
    steps = max(state["step"] for state in states.values())
    for state in engine.basic_optimizer.state.values():
        # DeepSpeed's CPU Adam has a number where PyTorch has a tensor.
        is_tensor = isinstance(state["step"], torch.Tensor)
        state["step"] = torch.full_like(state["step"], steps) if is_tensor else steps


def _allocate(engine: Any) -> None:
    """Give the optimizer its state of zeros, which it would make in its first step."""
    base = engine.basic_optimizer
    for flat, _ in _flat_partitions(engine.optimizer):
        if not base.state.get(flat):
            base.state[flat] = {
                "step": torch.zeros((), device=flat.device if _is_fused(base) else None),
                **{key: torch.zeros_like(flat.data) for key in _MOMENTS},
            }


def _link(engine: Any) -> None:
    """Let parameters know their part of the optimizer state.

    DeepSpeed does so after the update of the first parameter group, when the others have none.
    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    for flat, parameters in _flat_partitions(engine.optimizer):
        lazy_init_hp_params_optimizer_state(parameters, flat, engine.basic_optimizer.state)


def _flat_partitions(zero: Any) -> list[tuple[torch.Tensor, list[nn.Parameter]]]:
    """Pair this rank's float32 buffers with the parameters that are linked to them.

    DeepSpeed has one optimizer for stage 3 (which finds parts without links), one for 1 and 2,
    and one for stage 1 with bfloat16.
    """
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return [(flat, []) for flat in zero.fp32_partitioned_groups_flat]
    if hasattr(zero, "single_partition_of_fp32_groups"):
        return list(zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True))
    return list(zip(zero.fp32_groups_flat_partition, zero.bf16_groups, strict=True))


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") for group in optimizer.param_groups)


def _put(parameter: nn.Parameter, whole: torch.Tensor, key: str | None) -> None:
    """Set this rank's part of one optimizer state, or, without `key`, of the float32 weight."""
    from deepspeed.utils import (
        safe_get_local_fp32_param,
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if not hasattr(parameter, "ds_id"):
        if key is None:
            safe_set_full_fp32_param(parameter, whole)
        else:
            safe_set_full_optimizer_state(parameter, whole, key)
        return
    # Stage 3's function for whole tensors fails on sizes that the ranks do not divide.
    size = safe_get_local_fp32_param(parameter).numel()
    part = torch.zeros(size)
    mine = whole.flatten()[comm.get_rank() * size : (comm.get_rank() + 1) * size]
    part[: len(mine)] = mine
    if key is None:
        safe_set_local_fp32_param(parameter, part)
    else:
        safe_set_local_optimizer_state(parameter, part, key)
