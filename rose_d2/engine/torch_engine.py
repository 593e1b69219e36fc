"""The step engine `torch`: nothing but PyTorch, on one device or data-parallel on several."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from rose_d2.engine.non_finite import NonFiniteGuard
from rose_d2.engine.step_engine import (
    StepEngine,
    accumulation_steps,
    amp_dtype,
    detached_losses,
    max_grad_norm,
)

logger = logging.getLogger(__name__)


class TorchStepEngine(StepEngine):
    """Plain PyTorch: DistributedDataParallel, gradient accumulation, clipping, autocast.

    What trains is kept in float32, also where MODEL.LMM.DTYPE gives frozen weights less.
    """

    scheduler: LambdaLR | None

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        guard: NonFiniteGuard,
        scheduler: LambdaLR | None = None,
        accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            model: the unwrapped model, on its device.
            optimizer: over the parameters of `model`.
            guard: see `StepEngine`.
            scheduler: see `StepEngine`.
            accumulation_steps: micro-batches averaged into one step.
            max_grad_norm: gradients are scaled down to this norm over all parameters; None: never.
            amp_dtype: autocast to this type; float16 also scales the loss. None: full precision.
        """
        super().__init__()
        self.device = next(model.parameters()).device
        self.model = _distribute(model.train(), self.device)
        self.optimizer = optimizer
        self.guard = guard
        self.scheduler = scheduler
        self.accumulation_steps = accumulation_steps
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self.amp_dtype = amp_dtype
        self.data_iterator = iter(())
        self._unwrapped = model
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        check_weight_dtypes(model, amp_dtype(cfg))
        train_in_float32(model)
        optimizer = build_optimizer(cfg, model)
        return {
            "model": model,
            "optimizer": optimizer,
            "guard": NonFiniteGuard.from_config(cfg, model),
            "scheduler": build_lr_scheduler(cfg, optimizer),
            "accumulation_steps": accumulation_steps(cfg),
            "max_grad_norm": max_grad_norm(cfg),
            "amp_dtype": amp_dtype(cfg),
        }

    def run_step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        super().run_step()

    def _accumulate(
        self, batched_inputs: list[dict[str, Any]], *, is_last: bool
    ) -> dict[str, float]:
        with self._gradient_exchange(is_last):
            with self._autocast():
                losses = self.model(batched_inputs)
            # Also of a loss that is NaN: without it the other ranks would wait for its gradients.
            total = sum(losses.values()) / self.accumulation_steps
            self._scaler.scale(total).backward()
        return detached_losses(losses)

    def _autocast(self) -> torch.autocast:
        enabled = self.amp_dtype is not None
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=enabled)

    def _gradient_exchange(self, is_last: bool) -> AbstractContextManager:
        """Let ranks exchange gradients only in the last micro-batch of a step."""
        if is_last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _update(
        self, micro_batches: list[list[dict[str, Any]]], micro_losses: list[dict[str, float]]
    ) -> float | None:
        self._scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # With float16 an overflow is ordinary: the scaler skips the step and lowers its scale.
        checked = None if self._scaler.is_enabled() else norm.item()
        if self.guard.inspect(self.iter, micro_losses, checked, micro_batches):
            self.optimizer.zero_grad(set_to_none=True)
            self._scaler.update()
            return None
        nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return norm.item()

    def evaluation(self) -> AbstractContextManager:
        """See `StepEngine.evaluation`; frozen weights in bfloat16 meet trained ones in float32."""
        dtypes = {p.dtype for p in self._unwrapped.parameters()}
        return self._autocast() if len(dtypes) > 1 else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        states = {}
        if comm.is_main_process():
            for name, parameter in trained_parameters(self._unwrapped):
                if state := self.optimizer.state.get(parameter):
                    states[name] = {
                        "exp_avg": state["exp_avg"].to("cpu", torch.float32, copy=True),
                        "exp_avg_sq": state["exp_avg_sq"].to("cpu", torch.float32, copy=True),
                        "step": int(state["step"]),
                    }
        steps = self.scheduler.last_epoch if self.scheduler else 0
        return {
            "optimizer": states,
            "scheduler": {"steps": steps},
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict["optimizer"]
        check_optimizer_state(self._unwrapped, states)
        self.optimizer.state.clear()
        for name, parameter in trained_parameters(self._unwrapped):
            if name not in states:
                continue
            state = states[name]
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(state["step"])),
                "exp_avg": state["exp_avg"].to(parameter),
                "exp_avg_sq": state["exp_avg_sq"].to(parameter),
            }
            if "master" in state:
                parameter.data.copy_(state["master"])
        self._set_schedule(state_dict["scheduler"]["steps"])
        if self._scaler.is_enabled() and state_dict["scaler"]:
            self._scaler.load_state_dict(state_dict["scaler"])

    def _set_schedule(self, steps: int) -> None:
        """Continue the config's schedule after `steps` steps."""
        if self.scheduler is None:
            return
        groups = self.optimizer.param_groups
        base_rates = [group["initial_lr"] for group in groups]
        rates = [
            rate * factor(steps)
            for rate, factor in zip(base_rates, self.scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.scheduler.load_state_dict(
            self.scheduler.state_dict()
            | {
                "last_epoch": steps,
                "_step_count": steps + 1,
                "base_lrs": base_rates,
                "_last_lr": rates,
            }
        )


def _distribute(model: nn.Module, device: torch.device) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids)


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
