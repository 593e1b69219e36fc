"""How one optimizer step is made: the contract of step engines, and the plain PyTorch one."""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from rose_d2.engine.non_finite import NonFiniteGuard
from rose_d2.engine.optimizer import (
    build_lr_scheduler,
    build_optimizer,
    check_optimizer_state,
    check_weight_dtypes,
    train_in_float32,
    trained_parameters,
)

logger = logging.getLogger(__name__)


_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class StepEngine(TrainerBase):
    """What `RoseTrainer` drives: each `run_step` is one optimizer step.

    An engine is built with `(cfg, model)`, wraps the model for its kind of parallelism and owns
    optimizer and schedule.

    Attributes:
        model: returns a dict of scalar losses in training mode; may be wrapped.
        guard: decides which updates are skipped because something became NaN or infinite.
        accumulation_steps: micro-batches averaged into one step.
        scheduler: stepped by detectron2's `LRScheduler` hook, for which the engine then has an
            `optimizer`; None if the engine steps its own.
        data_iterator: yields micro-batches; set by the trainer before the first step.
    """

    model: nn.Module
    guard: NonFiniteGuard
    accumulation_steps: int
    scheduler: LRScheduler | None
    data_iterator: Iterator[list[dict[str, Any]]]

    def run_step(self) -> None:
        """Make one step: all its micro-batches, then the update, then the metrics."""
        assert self.model.training, "The model was left in evaluation mode."
        self.guard.begin_step()
        micro_batches: list[list[dict[str, Any]]] = []
        micro_losses: list[dict[str, float]] = []
        data_time = 0.0
        for micro_step in range(self.accumulation_steps):
            start = time.perf_counter()
            micro_batches.append(next(self.data_iterator))
            data_time += time.perf_counter() - start
            is_last = micro_step == self.accumulation_steps - 1
            micro_losses.append(self._accumulate(micro_batches[-1], is_last=is_last))
        grad_norm = self._update(micro_batches, micro_losses)
        if grad_norm is None:
            return
        losses = {k: sum(m[k] for m in micro_losses) / len(micro_losses) for k in micro_losses[0]}
        write_metrics(losses, {"grad_norm": grad_norm}, data_time)

    @abstractmethod
    def _accumulate(
        self, batched_inputs: list[dict[str, Any]], *, is_last: bool
    ) -> dict[str, float]:
        """Add one micro-batch's share to the gradients and return its losses."""

    @abstractmethod
    def _update(
        self, micro_batches: list[list[dict[str, Any]]], micro_losses: list[dict[str, float]]
    ) -> float | None:
        """Step the optimizer; returns the gradient norm before clipping, None if skipped."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs besides the weights; every rank has to call it.

        The state says nothing of engine, sharding or number of processes, so any of them may
        change on resuming.

        Returns:
            optimizer: parameter name (of the unwrapped model) -> exp_avg and exp_avg_sq, whole
            float32 tensors on the CPU, step (int) and, where the weights are kept in a lower
            precision than the optimizer's own copy, that copy as master. Empty but on rank 0.
            scheduler: steps, how many the schedule has made.
            scaler: the state of the gradient scaler, empty without one.
        """

    @abstractmethod
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state of `state_dict`; every rank has to call it, with the whole state.

        The model has to have its weights already. Learning rates and the length of the schedule
        stay those of the config.

        Raises:
            ValueError: the state is of other parameters.
        """

    def gathered_parameters(self) -> AbstractContextManager:
        """Make a context in which the unwrapped model's weights are whole on every rank.

        All ranks have to enter and leave it together; changes made by rank 0 last.
        """
        return nullcontext()

    def evaluation(self) -> AbstractContextManager:
        """Make a context in which each rank may call the unwrapped model on its own.

        All ranks have to enter and leave it together.
        """
        return nullcontext()


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


def detached_losses(losses: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Read scalar losses by name with one transfer from the device."""
    values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


def write_metrics(
    losses: Mapping[str, float], others: Mapping[str, float], data_time: float
) -> None:
    """Put one step's numbers, averaged over ranks, into the event storage of the main process.

    Args:
        losses: averages over the micro-batches of this rank; their sum becomes `total_loss`.
        others: numbers logged beside the losses.
        data_time: seconds this rank waited for data; the slowest rank's is logged.
    """
    gathered = comm.gather({**losses, **others})
    data_times = comm.gather(data_time)
    if not comm.is_main_process():
        return
    mean = {name: sum(rank[name] for rank in gathered) / len(gathered) for name in gathered[0]}
    storage = get_event_storage()
    storage.put_scalars(**mean)
    storage.put_scalar("total_loss", sum(mean[name] for name in losses))
    storage.put_scalar("data_time", max(data_times))


def max_grad_norm(cfg: CfgNode) -> float | None:
    """Read the norm to which gradients are clipped; None if they are not.

    Raises:
        ValueError: `SOLVER.CLIP_GRADIENTS` asks for anything but the 2-norm over the full model.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    if clip.CLIP_TYPE != "full_model" or clip.NORM_TYPE != 2.0:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS has CLIP_TYPE {clip.CLIP_TYPE!r} and NORM_TYPE "
            f"{clip.NORM_TYPE}, but only the 2-norm over the full model is clipped: set "
            "CLIP_TYPE 'full_model' and NORM_TYPE 2.0."
        )
    return clip.CLIP_VALUE


def accumulation_steps(cfg: CfgNode) -> int:
    """Read how many micro-batches make one step.

    Raises:
        ValueError: fewer than one.
    """
    if cfg.SOLVER.ACCUMULATION_STEPS < 1:
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS is {cfg.SOLVER.ACCUMULATION_STEPS}: use 1 or more."
        )
    return cfg.SOLVER.ACCUMULATION_STEPS


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Read the type `SOLVER.AMP` computes in; None is full precision.

    On a CPU without instructions for bfloat16, float32 is faster and more exact: weights in float32
    are then trained in full precision. Weights in bfloat16 are computed with as they are, slowly.

    Raises:
        ValueError: the type is unknown, or float16 is asked of a CPU.
    """
    amp = cfg.SOLVER.AMP
    if not amp.ENABLED:
        return None
    if amp.DTYPE not in _AMP_DTYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE is {amp.DTYPE!r}: use one of {sorted(_AMP_DTYPES)}.")
    if amp.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("SOLVER.AMP.DTYPE float16 needs a GPU: use bfloat16 on the CPU.")
    if cfg.MODEL.DEVICE == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        if cfg.MODEL.LMM.DTYPE == "float32":
            logger.info("This CPU has no bfloat16 instructions: training in full precision.")
            return None
        logger.warning(
            "This CPU has no bfloat16 instructions, and MODEL.LMM.DTYPE is bfloat16: training will "
            "be slow; MODEL.LMM.DTYPE float32 is faster here."
        )
    return _AMP_DTYPES[amp.DTYPE]
