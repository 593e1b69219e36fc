"""Activations of a training step or of inference, found by running it without memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache

from rose_d2.engine.planning.memory_plan_model import KnownMasks
from rose_d2.engine.planning.memory_plan_sharding import GradientLife
from rose_d2.engine.planning.memory_plan_tracker import LiveBytes
from rose_d2.engine.planning.step_benchmark_inputs import synthetic_inputs
from rose_d2.engine.steps.step_engine import amp_dtype
from rose_d2.layers.mask_ops import masks_to_boxes, pairwise_intersection
from rose_d2.modeling.inference import nms_size
from rose_d2.modeling.meta_arch.rose import ROSE


def training_activations(
    cfg: CfgNode, model: ROSE, batch_size: int, gradients: GradientLife
) -> int:
    """Most bytes that one micro-batch makes at once, forward and backward.

    Args:
        cfg: the full config.
        model: of `build_without_memory`.
        batch_size: images of the micro-batch.
        gradients: those "made" stay and count; those "moved" count until they are complete.
    """
    trained = [p for p in model.train().parameters() if p.requires_grad]
    inputs = synthetic_inputs(cfg, batch_size, training=True)
    with ExitStack() as stack:
        for parameter in trained:
            parameter.grad = None
            if gradients == "moved":
                handle = parameter.register_post_accumulate_grad_hook(_drop_gradient)
                stack.callback(handle.remove)
        stack.enter_context(EventStorage())
        live = stack.enter_context(LiveBytes(list(model.parameters())))
        stack.enter_context(KnownMasks())
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

    Masks and names are those of the last image, beside the instances of the images before it; the
    cache of keys and values is that of the longest names.

    Args:
        cfg: the full config.
        model: of `build_without_memory`.
        batch_size: images.
    """
    inputs = synthetic_inputs(cfg, batch_size, training=False)
    model.eval()
    analyzer: Any = model.patch_analyzer
    mask_head: Any = model.mask_head
    stages: dict[str, int] = {}
    with KnownMasks(), LiveBytes(list(model.parameters())) as live:
        lmm_output, proposals, sam_features = model.perceive(inputs)
        stages["image and prompt"] = live.restart()
        kept = torch.arange(min(cfg.TEST.TOP_K, model.backbone.grid.num_patches))
        candidates = analyzer.embed(proposals, 0, kept)
        size = tuple(inputs[0]["sam_image"].shape[-2:])
        (masks,) = mask_head.decode(sam_features[:1], [candidates], [size])
        full_size = (inputs[0]["height"], inputs[0]["width"])
        # Alive until the end, as the masks of the images before are.
        earlier = masks.new_empty(batch_size - 1, len(masks), *full_size, dtype=torch.bool)
        stages["masks"] = live.restart()
        _compare(mask_head.upscale(masks, size, nms_size(full_size, cfg.TEST.NMS.LONGEST_SIDE)))
        stages["mask NMS"] = live.restart()
        _decode_names(cfg, model, candidates.category_embeddings)
        stages["names"] = live.restart()
        _binarise(mask_head.upscale(masks, size, full_size))
        stages["full-size masks"] = live.restart()
        del earlier
    return stages


def _compare(logits: torch.Tensor) -> None:
    """What `mask_nms` computes of masks; the rest of it is small."""
    masks = logits > 0
    pairwise_intersection(masks, masks)


def _binarise(logits: torch.Tensor) -> None:
    """What `instance_inference` makes of masks, when it keeps them all."""
    masks = logits > 0
    masks_to_boxes(masks)
    masks[torch.arange(len(masks))]


def _decode_names(cfg: CfgNode, model: ROSE, embeddings: torch.Tensor) -> None:
    """The steps of `CategoryDecoder.generate`, as many as it may take."""
    lmm, prompt = model.backbone, model.inference.category_decoder.prompt
    cache = DynamicCache()
    lmm.run_text(lmm.embed_tokens(torch.tensor([prompt.before])), cache)
    cache.batch_repeat_interleave(len(embeddings))
    after = lmm.embed_tokens(torch.tensor(prompt.after)).expand(len(embeddings), -1, -1)
    words = torch.cat([embeddings[:, None].to(after.dtype), after], dim=1)
    for _ in range(cfg.MODEL.CATEGORY_DECODER.MAX_TOKENS):
        states = lmm.run_text(words, cache)[:, -1]
        _, token = lmm.logits(states).float().log_softmax(dim=1).max(dim=1)
        words = lmm.embed_tokens(token[:, None]).to(states.dtype)


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _GpuAutocast(TorchFunctionMode):
    """Computes in float32 what a GPU's autocast does and the CPU's does not.

    Of PyTorch's list (notes on torch.amp, "CUDA Ops that can autocast to float32") those that
    make large tensors in this model; for layer norms see `_norm_in_float32`.
    """

    _FUNCTIONS = frozenset(
        {F.softmax, torch.softmax, torch.Tensor.softmax}
        | {torch.pow, torch.Tensor.pow, torch.Tensor.__pow__}
    )

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in self._FUNCTIONS and torch.is_autocast_enabled("cpu"):
            args = (_float(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


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
