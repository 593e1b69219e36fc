"""What a step holds in memory: activations, found by running it without memory, and its state."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventStorage
from torch import nn

# The meta tensors of torch.compile and torch.export, which remember the device they stand for;
# documented under "Fake tensor" there.
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rose_d2.engine.deepspeed_engine import deepspeed_config
from rose_d2.engine.step_engine import amp_dtype
from rose_d2.layers.logit_masks import LogitMasks
from rose_d2.modeling.meta_arch.rose import ROSE
from rose_d2.profiling.inputs import synthetic_inputs

# What becomes of a parameter's gradient during a backward pass: it appears there and stays
# ("made"), or goes at once into a sum or a buffer that exists already ("moved").
GradientLife = Literal["made", "moved"]
FLOAT32_BYTES = 4
# DeepSpeed's defaults (deepspeed/runtime/zero/config.py), in elements.
_REDUCE_BUCKET = 500_000_000
_MAX_LIVE = 1_000_000_000
_SUB_GROUP = 1_000_000_000


def training_activations(
    cfg: CfgNode, model: ROSE, batch_size: int, gradients: GradientLife, num_objects: int
) -> int:
    """Most bytes that one micro-batch makes at once, forward and backward.

    Args:
        cfg: the full config.
        model: of `build_without_memory`.
        batch_size: images of the micro-batch.
        gradients: those "made" stay and count; those "moved" count until they are complete.
        num_objects: in each image.
    """
    trained = [p for p in model.train().parameters() if p.requires_grad]
    inputs = synthetic_inputs(cfg, batch_size, training=True, num_objects=num_objects)
    with ExitStack() as stack:
        for parameter in trained:
            parameter.grad = None
            if gradients == "moved":
                handle = parameter.register_post_accumulate_grad_hook(_drop_gradient)
                stack.callback(handle.remove)
        stack.enter_context(EventStorage())
        live = stack.enter_context(LiveBytes(list(model.parameters())))
        stack.enter_context(AllKept())
        dtype = amp_dtype(cfg)
        # Tensors without values take part in the CPU's autocast.
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            if cfg.MODEL.DEVICE != "cpu":
                _norm_in_float32(model, stack)
                with _GpuAutocast():
                    losses = model(inputs)
            else:
                losses = model(inputs)
        sum(losses.values()).backward()
    for parameter in trained:
        parameter.grad = None
    return live.peak


@torch.no_grad()
def inference_activations(cfg: CfgNode, model: ROSE, batch_size: int) -> dict[str, int]:
    """Most bytes at once in each stage of inference, TEST.TOP_K candidates kept throughout.

    What an image needs counts beside the instances of the images before it; the cache of keys and
    values is that of the longest names, and masks reach over the whole image.

    Args:
        cfg: the full config.
        model: of `build_without_memory`.
        batch_size: images.
    """
    inputs = synthetic_inputs(cfg, batch_size, training=False)
    inference = model.eval().inference
    stages: dict[str, int] = {}
    with AllKept(), LiveBytes(list(model.parameters())) as live:

        def end(stage: str) -> None:
            stages[stage] = max(stages.get(stage, 0), live.restart())

        _, proposals, sam_features = model.perceive(inputs)
        end("image and prompt")
        drawn = [inference.draw(item, proposals, sam_features, i) for i, item in enumerate(inputs)]
        end("masks")
        drawn = [inference.suppress(*image) for image in zip(drawn, inputs, strict=True)]
        end("mask NMS")
        names = inference.spell(drawn, inputs)
        named = [inference.name(*image) for image in zip(drawn, inputs, names, strict=True)]
        end("names")
        outputs = []
        for image in zip(named, inputs, strict=True):
            outputs.append(inference.answer(*image))
            end("merging")
    return stages


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _Replacing(TorchFunctionMode):
    """Gives functions of PyTorch another meaning."""

    def call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Call the function, or what replaces it."""
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.call(func, args, kwargs or {})


class _GpuAutocast(_Replacing):
    """Computes in float32 what a GPU's autocast does and the CPU's does not.

    Of PyTorch's list (notes on torch.amp, "CUDA Ops that can autocast to float32") those that
    make large tensors in this model; for layer norms see `_norm_in_float32`.
    """

    _FUNCTIONS = frozenset(
        {F.softmax, torch.softmax, torch.Tensor.softmax}
        | {torch.pow, torch.Tensor.pow, torch.Tensor.__pow__}
    )

    def call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        if func in self._FUNCTIONS and torch.is_autocast_enabled("cpu"):
            args = (_float(args[0]), *args[1:])
        return func(*args, **kwargs)


def _norm_in_float32(model: nn.Module, stack: ExitStack) -> None:
    """The same for layer norms, by hooks: they also run where the backward pass recomputes."""

    def cast(module: nn.Module, args: tuple) -> tuple:
        return tuple(map(_float, args)) if torch.is_autocast_enabled("cpu") else args

    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            stack.callback(module.register_forward_pre_hook(cast).remove)


def _float(value: Any) -> Any:
    is_low = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_low else value


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


def build_without_memory(cfg: CfgNode, dtype: torch.dtype | None = None) -> ROSE:
    """Build the model of a config with weights that have a shape and a type but no values.

    What is computed from weights has no values either; what is not (token ids, masks of the
    ground truth, matched patches) is computed as always. So the model runs its own forward and
    backward pass, whatever its size, as long as no value decides what is run: in training that
    is so, in evaluation `AllKept` decides.

    Args:
        cfg: no checkpoints are read, see `without_downloads`.
        dtype: of all floating-point weights; None keeps those of the config.
    """
    with _EmptyOnMeta():
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    replaced: dict[int, nn.Parameter] = {}  # tied parameters stay one
    owned = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    for module, name, parameter in owned:
        if id(parameter) not in replaced:
            with mode:
                values = torch.empty(parameter.shape, dtype=dtype or parameter.dtype)
            replaced[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
        setattr(module, name, replaced[id(parameter)])
    return model


class AllKept(_Replacing):
    """Lets code run that decides by values of tensors which have none.

    Such a mask keeps everything, such an order is the given one, such a condition holds, and the
    numbers themselves are 0. Masks that have values are obeyed. `LogitMasks` reach everywhere.
    """

    _ORDERS = (torch.argsort, torch.Tensor.argsort)
    _NUMBERS = (torch.Tensor.item, torch.Tensor.numpy, torch.Tensor.tolist)

    def __enter__(self) -> AllKept:
        self._reach = LogitMasks.reach
        LogitMasks.reach = property(_whole_image)  # type: ignore[assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        LogitMasks.reach = self._reach
        super().__exit__(*error)

    def call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        is_unknown = bool(args) and isinstance(args[0], FakeTensor)
        if func is torch.Tensor.__getitem__ and getattr(args[1], "dtype", None) is torch.bool:
            tensor, mask = args
            if isinstance(mask, FakeTensor):
                return tensor.clone()
            return tensor[mask.nonzero(as_tuple=True)]
        if is_unknown and func in self._ORDERS:
            return torch.arange(args[0].shape[-1], device=args[0].device).expand(args[0].shape)
        if is_unknown and func is torch.Tensor.__bool__:
            return True
        if is_unknown and func in self._NUMBERS:
            zeros = torch.zeros((), dtype=args[0].dtype).expand(args[0].shape)
            return func(zeros)
        return func(*args, **kwargs)


def _whole_image(masks: LogitMasks) -> list[list[int]]:
    height, width = masks.image_size
    return [[0, height, 0, width]] * len(masks)


class _EmptyOnMeta(_Replacing):
    """Puts weights on the meta device and leaves computed buffers where they are."""

    def call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


class LiveBytes(TorchDispatchMode):
    """Counts the memory of every tensor made while it is active, from its making to its end.

    Works with tensors that have no values, too: it reads sizes, never an allocator. What a kernel
    takes for itself and returns before its end, it does not see.

    Attributes:
        current: bytes alive now, of tensors made since the start.
        peak: the most there were at once.
    """

    def __init__(self, known: Sequence[torch.Tensor] = (), device_type: str = "") -> None:
        """
        Args:
            known: tensors made before, which do not count: weights, gradients, inputs.
            device_type: counts only tensors there; "" counts all.
        """
        super().__init__()
        self._device_type = device_type
        self.current = 0
        self.peak = 0
        self._counted: dict[int, weakref.ref] = {}
        self._known = {_key(tensor): tensor for tensor in known}

    def restart(self) -> int:
        """Forget the peak so far and return it."""
        peak, self.peak = self.peak, self.current
        return peak

    def __torch_dispatch__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and self._device_type in ("", leaf.device.type):
                self._count(leaf)
        self.peak = max(self.peak, self.current)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._counted or key in self._known:
            return
        size = storage.nbytes()

        def forget(_: weakref.ref) -> None:
            self.current -= size
            del self._counted[key]

        self._counted[key] = weakref.ref(storage, forget)
        self.current += size


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
