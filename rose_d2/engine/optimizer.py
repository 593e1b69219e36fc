"""The optimizer: parameter groups, learning rates, the schedule, and what its state belongs to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.AdamW:
    """Build AdamW over the parameters that `model.trainable_parts()` lists.

    A part trains at `SOLVER.BASE_LR` times its `SOLVER.LR_MULTIPLIER`.

    Raises:
        ValueError: nothing trains, or the model trains a parameter outside its parts.
    """
    return torch.optim.AdamW(build_parameter_groups(cfg, model))


def build_parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """Group the trained parameters as `parameter_groups` does, by the rates of `SOLVER`."""
    return parameter_groups(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        lr_multipliers={part.lower(): x for part, x in cfg.SOLVER.LR_MULTIPLIER.items()},
    )


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    lr_multipliers: dict[str, float],
) -> list[dict]:
    """Split the trained parameters into (part, with or without weight decay).

    A parameter two parts share (tied embeddings) belongs to the first of them.

    Returns:
        Groups with the keys params, lr, weight_decay and name, as torch optimizers take them.

    Raises:
        ValueError: no parameter trains, or one requires a gradient but belongs to no part.
    """
    embeddings = _embedding_ids(model)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for part, named_parameters in model.trainable_parts().items():
        for name, parameter in named_parameters:
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            decays = takes_weight_decay(name, parameter) and id(parameter) not in embeddings
            groups.setdefault((part, decays), []).append(parameter)
    _check_all_assigned(model, seen)
    return [
        {
            "params": parameters,
            "lr": base_lr * lr_multipliers.get(part, 1.0),
            "weight_decay": weight_decay if decays else 0.0,
            "name": f"{part}/{'decay' if decays else 'no_decay'}",
        }
        for (part, decays), parameters in groups.items()
    ]


def check_weight_dtypes(model: nn.Module, amp_dtype: torch.dtype | None) -> None:
    """Refuse to train weights of less than float32 as they are: small updates would be lost.

    Args:
        model: unwrapped.
        amp_dtype: what mixed precision computes in; None without.

    Raises:
        ValueError: there is no mixed precision, and some weights that train are not float32.
    """
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    if amp_dtype is None and dtypes - {torch.float32}:
        names = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"The weights that train are of {names} and SOLVER.AMP is off: set "
            "SOLVER.AMP.ENABLED True, or MODEL.LMM.DTYPE float32."
        )


def train_in_float32(model: nn.Module) -> None:
    """Make float32 of the weights that train, in place; frozen parts keep their type.

    So become weights of no part, which no output depends on: they meet what the trained ones made.
    """
    frozen = {
        id(parameter)
        for named_parameters in model.parts().values()
        for _, parameter in named_parameters
        if not parameter.requires_grad
    }
    for parameter in model.parameters():
        if id(parameter) not in frozen:
            parameter.data = parameter.data.float()


def takes_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """Tell matrices and kernels from norms, biases and learned position or token vectors."""
    last = name.rsplit(".", 1)[-1]
    return parameter.ndim > 1 and not any(word in last for word in ("embed", "rel_pos", "token"))


def _embedding_ids(model: nn.Module) -> set[int]:
    modules = (m for m in model.modules() if isinstance(m, nn.Embedding))
    return {id(module.weight) for module in modules}


def _check_all_assigned(model: nn.Module, seen: set[int]) -> None:
    if not seen:
        raise ValueError(
            "No parameter trains: switch a part on in MODEL.TRAINABLE or MODEL.LORA.ENABLED."
        )
    forgotten = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in seen]
    if forgotten:
        raise ValueError(
            f"{len(forgotten)} parameters require a gradient but belong to no part of "
            f"trainable_parts(), for example {forgotten[:3]}: freeze them or add them to a part."
        )


def warmup_decay_factor(step: int, *, warmup_iters: int, max_iter: int) -> float:
    """Return DeepSpeed's `WarmupDecayLR` (type linear) as a factor of the base rate.

    The rate rises from 0 at step 0 (so the first optimizer step changes nothing, as in
    DeepSpeed) to 1 at `warmup_iters` and falls to 0 at `max_iter`.

    Args:
        step: optimizer steps done.
        warmup_iters: length of the warm-up; DeepSpeed takes at least 2.
        max_iter: optimizer steps of the whole run.
    """
    warmup_iters = max(2, warmup_iters)
    if step < warmup_iters:
        return step / warmup_iters
    return max(0.0, (max_iter - step) / max(1, max_iter - warmup_iters))


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Build the schedule of `warmup_decay_factor`, stepped once per optimizer step."""
    warmup_iters, max_iter = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    if warmup_iters >= max_iter:
        logger.warning(
            "SOLVER.WARMUP_ITERS (%d) is not below SOLVER.MAX_ITER (%d): the learning rate "
            "never reaches SOLVER.BASE_LR.",
            warmup_iters,
            max_iter,
        )
    return LambdaLR(
        optimizer,
        lambda step: warmup_decay_factor(step, warmup_iters=warmup_iters, max_iter=max_iter),
    )


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List the parameters that train, each shared one once, in the model's order."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def check_optimizer_state(model: nn.Module, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse an optimizer state that belongs to other parameters.

    Args:
        model: unwrapped.
        states: see `StepEngine.state_dict`; empty before the first step.

    Raises:
        ValueError: a name or a shape does not fit the parameters that train.
    """
    if "param_groups" in states:
        raise ValueError(
            "This checkpoint's optimizer state is of an earlier version, which numbered the "
            "parameters: set MODEL.WEIGHTS to the checkpoint and leave out --resume."
        )
    trained = dict(trained_parameters(model))
    problems = [f"unexpected: {name}" for name in states if name not in trained]
    for name, parameter in trained.items():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves it empty
        if name in states and states[name]["exp_avg"].shape != shape:
            saved = tuple(states[name]["exp_avg"].shape)
            problems.append(f"mismatched: {name} is {saved} there and {tuple(shape)} here")
    if problems:
        raise ValueError(
            "The checkpoint's optimizer state does not fit the parameters that train:\n  "
            + "\n  ".join(problems)
            + "\nResume with the config of the run, or set MODEL.WEIGHTS to the checkpoint and "
            "leave out --resume."
        )
    missing = [name for name in trained if name not in states]
    if states and missing:
        logger.warning("The optimizer starts anew for %d parameters: %s", len(missing), missing[:5])
