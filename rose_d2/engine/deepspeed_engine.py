"""The step engine `deepspeed`: ZeRO divides optimizer, gradients and weights among processes."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from rose_d2.engine.non_finite import NonFiniteGuard
from rose_d2.engine.optimizer import (
    build_parameter_groups,
    check_optimizer_state,
    check_weight_dtypes,
    trained_parameters,
)
from rose_d2.engine.step_engine import (
    StepEngine,
    accumulation_steps,
    amp_dtype,
    detached_losses,
    max_grad_norm,
)

logger = logging.getLogger(__name__)

# DeepSpeed's exchange between the processes of a machine without GPU.
_SHARED_MEMORY_OP = "deepspeed_shm_comm"
BuildGuard = Callable[[Callable[[], AbstractContextManager]], NonFiniteGuard]
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
_MOMENTS = ("exp_avg", "exp_avg_sq")


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
