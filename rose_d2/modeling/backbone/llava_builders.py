"""Building and loading Hugging Face's LLaVA-OneVision."""

from __future__ import annotations

import logging
import re

import peft
import torch
from detectron2.config import CfgNode
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

from rose_d2.prompts.special_tokens import IMAGE_TOKEN

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_llava(
    cfg: CfgNode, tokenizer: PreTrainedTokenizerBase | None = None
) -> LlavaOnevisionForConditionalGeneration:
    """LLaVA-OneVision with random weights, of the sizes in MODEL.LMM.{VISION,TEXT}_CONFIG.

    Args:
        cfg: the config.
        tokenizer: supplies the vocabulary size where TEXT_CONFIG names none.

    Raises:
        ValueError: if no sizes are configured or the dtype is unknown.
    """
    lmm = cfg.MODEL.LMM
    if not lmm.VISION_CONFIG or not lmm.TEXT_CONFIG:
        raise ValueError(
            "The LMM has neither weights nor sizes: set MODEL.LMM.PRETRAINED, or "
            "MODEL.LMM.VISION_CONFIG and MODEL.LMM.TEXT_CONFIG as configs/rose_tiny.yaml does."
        )
    text = dict(lmm.TEXT_CONFIG)
    image_token_id = 0
    if tokenizer is not None:
        text.setdefault("vocab_size", len(tokenizer))
        image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_vision_sizes(lmm)),
        text_config=Qwen2Config(**text),
        image_token_id=image_token_id,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )
    return LlavaOnevisionForConditionalGeneration(config).to(lmm_dtype(cfg))


def load_llava(cfg: CfgNode) -> LlavaOnevisionForConditionalGeneration:
    """LLaVA-OneVision from MODEL.LMM.PRETRAINED, refusing partial weights.

    Raises:
        ValueError: if a key of the model is missing in the weights or has another shape.
        OSError: from transformers, when nothing is found there.
    """
    source = cfg.MODEL.LMM.PRETRAINED
    model, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
        source, dtype=lmm_dtype(cfg), output_loading_info=True
    )
    bad = {kind: report[kind] for kind in ("missing_keys", "mismatched_keys") if report[kind]}
    if bad:
        raise ValueError(f"{source} is not a whole LLaVA-OneVision: {bad}.")
    if report["unexpected_keys"]:
        logger.warning("%s has weights nobody uses: %s", source, report["unexpected_keys"])
    return model


def add_lora(model: LlavaOnevisionForConditionalGeneration, lora: CfgNode) -> None:
    """Insert LoRA adapters into the language model's linear layers, in place.

    The targets are matched by their full path: bare suffixes such as q_proj also exist in
    SigLIP.

    Args:
        model: LLaVA-OneVision.
        lora: MODEL.LORA.
    """
    names = "|".join(re.escape(name) for name in lora.TARGET_MODULES)
    config = peft.LoraConfig(
        r=lora.RANK,
        lora_alpha=lora.ALPHA,
        lora_dropout=lora.DROPOUT,
        target_modules=rf".*language_model\.layers\.\d+\.\w+\.({names})",
    )
    peft.inject_adapter_in_model(config, model)


def lmm_dtype(cfg: CfgNode) -> torch.dtype:
    """MODEL.LMM.DTYPE as a torch dtype.

    Raises:
        ValueError: for anything but float32 and bfloat16.
    """
    name = cfg.MODEL.LMM.DTYPE
    if name not in DTYPES:
        raise ValueError(f"MODEL.LMM.DTYPE is {name!r}; allowed are {', '.join(DTYPES)}.")
    return DTYPES[name]


def _vision_sizes(lmm: CfgNode) -> dict:
    sizes = dict(lmm.VISION_CONFIG)
    sizes.setdefault("image_size", lmm.IMAGE_SIZE)
    sizes.setdefault("patch_size", lmm.PATCH_SIZE)
    sizes.setdefault("vision_use_head", False)
    return sizes
