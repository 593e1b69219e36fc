"""The step engine `torch`: nothing but PyTorch, on one device or data-parallel on several."""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from rose_d2.engine.steps.non_finite import NonFiniteGuard
from rose_d2.engine.steps.optimizer import (
    build_lr_scheduler,
    build_optimizer,
    check_weight_dtypes,
    train_in_float32,
)
from rose_d2.engine.steps.optimizer_state import check_optimizer_state, trained_parameters
from rose_d2.engine.steps.step_engine import (
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
