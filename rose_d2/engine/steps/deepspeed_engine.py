"""The step engine `deepspeed`: ZeRO divides optimizer, gradients and weights among processes."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from rose_d2.engine.steps.deepspeed_config import deepspeed_config
from rose_d2.engine.steps.deepspeed_state import gather_optimizer_state, put_optimizer_state
from rose_d2.engine.steps.non_finite import NonFiniteGuard
from rose_d2.engine.steps.optimizer import build_parameter_groups, check_weight_dtypes
from rose_d2.engine.steps.optimizer_state import check_optimizer_state, trained_parameters
from rose_d2.engine.steps.step_engine import StepEngine, amp_dtype, detached_losses

logger = logging.getLogger(__name__)

# DeepSpeed's exchange between the processes of a machine without GPU.
_SHARED_MEMORY_OP = "deepspeed_shm_comm"

BuildGuard = Callable[[Callable[[], AbstractContextManager]], NonFiniteGuard]


class DeepSpeedStepEngine(StepEngine):
    """ZeRO stages 1, 2 and 3 with DeepSpeed's accumulation, clipping and schedule.

    DeepSpeed copies the weights into buffers of its own, so it starts with the first step or the
    first loaded state, when the model has its weights. With bfloat16 it keeps the model's weights
    in bfloat16 and trains a float32 copy.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        settings: dict[str, Any],
        parameter_groups: list[dict[str, Any]],
        build_guard: BuildGuard,
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            model: the unwrapped model, on its device.
            settings: of `deepspeed_config`.
            parameter_groups: what trains, each group with its params, lr and weight_decay.
            build_guard: makes the guard, given `gathered_parameters`.
            amp_dtype: autocast to this type; None: full precision.
        """
        super().__init__()
        self.model = model.train()
        self.scheduler = None
        self.guard = build_guard(self.gathered_parameters)
        self.accumulation_steps = settings["gradient_accumulation_steps"]
        self.data_iterator = iter(())
        self._settings = settings
        self._parameter_groups = parameter_groups
        self._amp_dtype = amp_dtype
        self._device = next(model.parameters()).device
        self._losses_are_finite = True
        self._engine: Any = None
        self._deepspeed = _import_deepspeed(self._device)
        check_weight_dtypes(model, amp_dtype)
        logger.info("DeepSpeed settings: %s", json.dumps(settings, indent=2))

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        groups = build_parameter_groups(cfg, model)
        settings = deepspeed_config(cfg, comm.get_world_size())
        # One rate per group, so that SOLVER.LR_MULTIPLIER holds under DeepSpeed's schedule too.
        settings["scheduler"]["params"]["warmup_max_lr"] = [group["lr"] for group in groups]
        return {
            "model": model,
            "settings": settings,
            "parameter_groups": groups,
            "build_guard": lambda gathered: NonFiniteGuard.from_config(cfg, model, gathered),
            "amp_dtype": amp_dtype(cfg),
        }

    def _accumulate(
        self, batched_inputs: list[dict[str, Any]], *, is_last: bool
    ) -> dict[str, float]:
        self._start()
        self._engine.set_gradient_accumulation_boundary(is_last)
        losses = self._engine(batched_inputs)
        values = detached_losses(losses)
        total = sum(losses.values())
        self._losses_are_finite &= all(map(math.isfinite, values.values()))
        if is_last:
            # DeepSpeed makes no update, on any rank, with a gradient that is not finite; a loss
            # may be NaN although its gradient is finite.
            total = total if self._losses_are_finite else total * math.nan
            self._losses_are_finite = True
        self._engine.backward(total)
        return values

    def _update(
        self, micro_batches: list[list[dict[str, Any]]], micro_losses: list[dict[str, float]]
    ) -> float | None:
        if comm.is_main_process():
            rate = max(self._engine.get_lr())
            get_event_storage().put_scalar("lr", rate, smoothing_hint=False)
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not self._engine.was_step_applied():
            self._engine.lr_scheduler.step()  # which DeepSpeed then leaves out
        # With float16 an overflow is ordinary: DeepSpeed lowers its loss scale.
        checked = None if self._amp_dtype is torch.float16 else norm
        is_skipped = self.guard.inspect(self.iter, micro_losses, checked, micro_batches)
        return None if is_skipped else norm

    def state_dict(self) -> dict[str, Any]:
        self._start()
        return {
            "optimizer": gather_optimizer_state(self._engine, self.model),
            "scheduler": {"steps": self._engine.lr_scheduler.last_batch_iteration},
            "scaler": {},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict["optimizer"]
        check_optimizer_state(self.model, states)
        if self._engine is None:
            for name, parameter in trained_parameters(self.model):
                if "master" in states.get(name, {}):
                    parameter.data.copy_(states[name]["master"])
            self._start()
        else:
            self._engine.optimizer.refresh_fp32_params()  # after the model's weights changed
        if states:
            put_optimizer_state(self._engine, self.model, states)
        self._engine.lr_scheduler.step(state_dict["scheduler"]["steps"])

    def gathered_parameters(self) -> AbstractContextManager:
        if not self._is_sharded:
            return nullcontext()
        return self._deepspeed.zero.GatheredParameters(
            list(self.model.parameters()), modifier_rank=0
        )

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        # Weights in bfloat16 meet inputs in float32.
        autocast = torch.autocast(
            self._device.type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None
        )
        whole = (
            self._deepspeed.zero.unwrap_model_for_generation(self._engine)
            if self._is_sharded
            else nullcontext()
        )
        with autocast, whole:
            yield

    @property
    def _is_sharded(self) -> bool:
        """Whether the model's weights are divided among the processes."""
        stage = self._settings["zero_optimization"]["stage"]
        return self._engine is not None and stage == 3

    def _start(self) -> None:
        if self._engine is not None:
            return
        _join_process_group(self._device)
        os.environ["LOCAL_RANK"] = str(comm.get_local_rank())
        # DeepSpeed hands out parameters only, but SAM draws its Fourier features at random.
        for buffer in self.model.buffers():
            dist.broadcast(buffer, src=0)
        self._engine, *_ = self._deepspeed.initialize(
            model=_LossModel(self.model, self._device.type, self._amp_dtype),
            model_parameters=self._parameter_groups,
            config=copy.deepcopy(self._settings),
        )
        # DeepSpeed begins at -1, which makes the first two steps with a rate of 0.
        self._engine.lr_scheduler.step(0)


class _LossModel(nn.Module):
    """A model under autocast; DeepSpeed switches off an autocast around itself."""

    def __init__(self, model: nn.Module, device_type: str, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self._device_type = device_type
        self._dtype = dtype

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        enabled = self._dtype is not None
        with torch.autocast(self._device_type, dtype=self._dtype, enabled=enabled):
            return self.model(batched_inputs)


def _import_deepspeed(device: torch.device) -> ModuleType:
    """Import DeepSpeed for the device that trains.

    Raises:
        ImportError: it is not installed.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it takes a GPU if there is one
    try:
        import deepspeed
    except ImportError as error:
        raise ImportError(
            f"SOLVER.ENGINE deepspeed cannot import DeepSpeed ({error}): pip install deepspeed, "
            "or set SOLVER.ENGINE torch."
        ) from error
    if device.type == "cpu":
        # Compiling it takes a minute and a compiler; gloo does the same.
        deepspeed.ops.__compatible_ops__[_SHARED_MEMORY_OP] = False
    return deepspeed


def _join_process_group(device: torch.device) -> None:
    """Make a process group of this process alone, unless it is in one; DeepSpeed needs one."""
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    comm.create_local_process_group(1)
