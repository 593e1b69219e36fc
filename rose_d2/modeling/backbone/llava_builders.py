"""Building, loading and saving Hugging Face's LLaVA-OneVision."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

from rose_d2.modeling.backbone.patch_embed import RGB_CHANNELS
from rose_d2.modeling.backbone.positions import start_from_sine_cosine
from rose_d2.prompts.special_tokens import IMAGE_TOKEN

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")


def build_llava(
    cfg: CfgNode, tokenizer: PreTrainedTokenizerBase | None = None
) -> LlavaOnevisionForConditionalGeneration:
    """LLaVA-OneVision with random weights, of the sizes in MODEL.LMM.{VISION,TEXT}_CONFIG.

    Args:
        cfg: the config.
        tokenizer: supplies the vocabulary size where TEXT_CONFIG names none.

    Raises:
        ValueError: if no sizes are configured, or dtype or attention are unknown.
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
    model = LlavaOnevisionForConditionalGeneration(config).to(lmm_dtype(cfg))
    start_from_sine_cosine(vision_tower(model))
    _set_attention(model, cfg)
    return model


def check_vocabulary(
    model: LlavaOnevisionForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse a tokenizer whose tokens the model does not embed.

    Raises:
        ValueError: the tokenizer knows more tokens.
    """
    rows = model.config.text_config.vocab_size
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer knows {len(tokenizer)} tokens but the LMM embeds {rows}; take the "
            "tokenizer that belongs to the LMM."
        )


def vision_tower(model: LlavaOnevisionForConditionalGeneration) -> nn.Module:
    """SigLIP; its parts sit one level deeper in transformers before 5.6."""
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)


def load_llava(cfg: CfgNode) -> LlavaOnevisionForConditionalGeneration:
    """LLaVA-OneVision from MODEL.LMM.PRETRAINED, refusing partial weights.

    Raises:
        ValueError: if a key of the model is missing in the weights or has another shape, or
            dtype or attention are unknown.
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
    _set_attention(model, cfg)
    return model


def save_llava(
    model: LlavaOnevisionForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write an ordinary Hugging Face folder that `load_llava` and transformers can read.

    A tied pair of embedding and output layer is one tensor in it, an untied one two. The patch
    embedding is cut to RGB: the channel of the prior mask is ROSE's own and has to be kept
    elsewhere.

    Args:
        model: without adapters (`merge_lora`).
        tokenizer: its tokenizer.
        folder: where to write.
    """
    state = model.state_dict()
    for name in state:
        if name.endswith("embeddings.patch_embedding.weight"):
            state[name] = state[name][:, :RGB_CHANNELS]
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def check_source(cfg: CfgNode) -> None:
    """Tell a folder that is not there from a hub name, before anything is looked up.

    Raises:
        ValueError: MODEL.LMM.PRETRAINED can only be a folder, and there is none.
    """
    source = cfg.MODEL.LMM.PRETRAINED
    is_path = source.startswith((".", "/")) or source.count("/") > 1
    if is_path and not Path(source).is_dir():
        raise ValueError(
            f"MODEL.LMM.PRETRAINED {source} is no folder here; make or copy it (configs such as "
            "rose_tiny_lora.yaml say how in their first lines), or set a Hugging Face name."
        )


def _set_attention(model: LlavaOnevisionForConditionalGeneration, cfg: CfgNode) -> None:
    name = cfg.MODEL.LMM.ATTENTION
    if name not in ATTENTIONS:
        raise ValueError(f"MODEL.LMM.ATTENTION is {name!r}; allowed are {', '.join(ATTENTIONS)}.")
    # Flash attention takes no dense mask, and the language model's prefix mask is one.
    text = "sdpa" if name == "flash_attention_2" else name
    try:
        model.set_attn_implementation({"vision_config": name, "text_config": text})
    except ImportError as error:
        raise ValueError(
            "MODEL.LMM.ATTENTION flash_attention_2 needs the package flash-attn and a GPU: "
            "install it, or use sdpa, whose flash kernels come with PyTorch."
        ) from error


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
