"""Low-rank adapters (LoRA) of the language model: added for training, merged for release."""

from __future__ import annotations

import re

import peft
import torch
from detectron2.config import CfgNode
from peft.tuners.lora import LoraLayer
from torch import nn


def add_lora(model: nn.Module, lora: CfgNode) -> None:
    """Insert LoRA adapters into the language model's linear layers, in place.

    The targets are matched by their full path: bare suffixes such as q_proj also exist in
    SigLIP. The embedding and the output layer are none of peft's business: handed to it as
    `modules_to_save` they would be copied and a tied pair untied.

    Args:
        model: LLaVA-OneVision.
        lora: MODEL.LORA.

    Raises:
        ValueError: the rank is below 1, or a name in TARGET_MODULES is no linear layer of the
            language model.
    """
    if lora.RANK < 1:
        raise ValueError(f"MODEL.LORA.RANK is {lora.RANK}; use 1 or more, or switch LORA off.")
    known = _linear_layers(model)
    unknown = sorted(set(lora.TARGET_MODULES) - known)
    if unknown or not lora.TARGET_MODULES:
        raise ValueError(
            f"MODEL.LORA.TARGET_MODULES has {unknown or 'nothing in it'}; the language model's "
            f"linear layers are {sorted(known)}."
        )
    names = "|".join(re.escape(name) for name in lora.TARGET_MODULES)
    config = peft.LoraConfig(
        r=lora.RANK,
        lora_alpha=lora.ALPHA,
        lora_dropout=lora.DROPOUT,
        target_modules=rf".*language_model\.layers\.\d+\.\w+\.({names})",
    )
    peft.inject_adapter_in_model(config, model)


def merge_lora(model: nn.Module) -> int:
    """Add every adapter to the layer it belongs to and take it out, in place.

    The sum is made in float32 and rounded once, to the dtype of the layer.

    Args:
        model: with adapters of `add_lora`, or without any.

    Returns:
        How many layers had one.

    Raises:
        ValueError: from peft, an adapter is not finite.
    """
    adapted = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in adapted:
        dtype = layer.get_base_layer().weight.dtype
        layer.to(torch.float32).merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer().to(dtype))
    # Where inject_adapter_in_model left the settings; transformers would take it for a peft model.
    if adapted and hasattr(model, "peft_config"):
        del model.peft_config
    return len(adapted)


def _linear_layers(model: nn.Module) -> set[str]:
    """Last names of the linear layers inside language_model.layers."""
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "language_model.layers." in name
    }
