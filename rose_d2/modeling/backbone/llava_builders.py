"""Hugging Face's LLaVA-OneVision: built, loaded, saved, and what ROSE changes in it.

The changes are LoRA adapters, a fourth input channel, and positions that start from sines and
cosines.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

from rose_d2.dependencies import require
from rose_d2.prompts.conversation import IMAGE_TOKEN

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
# What MODEL.LMM.QUANTIZE leaves as it is: all but the layers of the language model.
_UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
RGB_CHANNELS = 3
NUM_INPUT_CHANNELS = RGB_CHANNELS + 1
_TILINGS = ((1, 1), (1, 2), (2, 1), (2, 2))


def build_llava(
    cfg: CfgNode, tokenizer: PreTrainedTokenizerBase | None = None
) -> LlavaOnevisionForConditionalGeneration:
    """LLaVA-OneVision with random weights, of the sizes in MODEL.LMM.{VISION,TEXT}_CONFIG.

    Args:
        cfg: the config.
        tokenizer: supplies the vocabulary size where TEXT_CONFIG names none.

    Raises:
        ValueError: if no sizes are configured, dtype or attention are unknown, or
            MODEL.LMM.QUANTIZE asks for what is done to weights as they are read.
    """
    lmm = cfg.MODEL.LMM
    if lmm.QUANTIZE != "none":
        raise ValueError(
            f"MODEL.LMM.QUANTIZE is {lmm.QUANTIZE}, which is done to the weights of "
            "MODEL.LMM.PRETRAINED as they are read, and that is empty: take an exported folder "
            "for MODEL.WEIGHTS (tools/export_checkpoint.py makes one), or set it to none."
        )
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
    vision = SiglipVisionConfig(**_vision_sizes(lmm))
    config = LlavaOnevisionConfig(
        vision_config=vision,
        # ROSE shows one view; transformers' own processing tiles images up to four of them.
        image_grid_pinpoints=[[vision.image_size * y, vision.image_size * x] for y, x in _TILINGS],
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
        ModuleNotFoundError: MODEL.LMM.QUANTIZE is set, and bitsandbytes is not installed.
        OSError: from transformers, when nothing is found there.
    """
    source = cfg.MODEL.LMM.PRETRAINED
    model, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
        source, dtype=lmm_dtype(cfg), output_loading_info=True, **_quantization(cfg)
    )
    bad = {kind: report[kind] for kind in ("missing_keys", "mismatched_keys") if report[kind]}
    if bad:
        raise ValueError(f"{source} is not a whole LLaVA-OneVision: {bad}.")
    if report["unexpected_keys"]:
        logger.warning("%s has weights nobody uses: %s", source, report["unexpected_keys"])
    _set_attention(model, cfg)
    return model


def _quantization(cfg: CfgNode) -> dict[str, Any]:
    """What MODEL.LMM.QUANTIZE means to transformers: weights become small one after another."""
    kind = cfg.MODEL.LMM.QUANTIZE
    if kind == "none":
        return {}
    require("bitsandbytes", f"MODEL.LMM.QUANTIZE {kind}")
    settings = BitsAndBytesConfig(
        load_in_8bit=kind == "int8",
        load_in_4bit=kind == "nf4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=lmm_dtype(cfg),
        llm_int8_skip_modules=_UNQUANTIZED,
    )
    return {"quantization_config": settings, "device_map": {"": cfg.MODEL.DEVICE}}


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
    build_processor(model, tokenizer).save_pretrained(folder)
    # Whoever writes weights lets only the owner read them; other files follow the user's umask.
    readable = folder.stat().st_mode & 0o666
    for file in folder.iterdir():
        file.chmod(readable)


def build_processor(
    model: LlavaOnevisionForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> LlavaOnevisionProcessor:
    """Hugging Face's processor of a model: SigLIP's normalisation, the tokenizer's template.

    Args:
        model: gives the sizes.
        tokenizer: its tokenizer.
    """
    config = model.config
    side = config.vision_config.image_size
    size = {"height": side, "width": side}
    pixels = {"size": size, "image_mean": [0.5] * RGB_CHANNELS, "image_std": [0.5] * RGB_CHANNELS}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            image_grid_pinpoints=config.image_grid_pinpoints, **pixels
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=(side // config.vision_config.patch_size) ** 2,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )


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


def lmm_dtype(cfg: CfgNode) -> torch.dtype:
    """MODEL.LMM.DTYPE as a torch dtype.

    Raises:
        ValueError: for anything but float32 and bfloat16.
    """
    name = cfg.MODEL.LMM.DTYPE
    if name not in DTYPES:
        raise ValueError(f"MODEL.LMM.DTYPE is {name!r}; allowed are {', '.join(DTYPES)}.")
    return DTYPES[name]


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


def _vision_sizes(lmm: CfgNode) -> dict:
    sizes = dict(lmm.VISION_CONFIG)
    sizes.setdefault("image_size", lmm.IMAGE_SIZE)
    sizes.setdefault("patch_size", lmm.PATCH_SIZE)
    sizes.setdefault("vision_use_head", False)
    return sizes


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
    # Only training and merging need it, and it takes its time.
    import peft

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
    from peft.tuners.lora import LoraLayer

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


def widen_patch_embedding(convolution: nn.Conv2d) -> nn.Conv2d:
    """Widen a patch embedding from RGB to RGB plus mask, without changing what it computes.

    The fourth channel's weights start at zero, so at step 0 any mask leaves the pretrained model
    as it was (the paper concatenates image and mask, section 3.4).

    Args:
        convolution: the loaded patch embedding with three input channels.

    Returns:
        A convolution with four input channels on the same device and in the same dtype.

    Raises:
        ValueError: if the convolution does not have three input channels.
    """
    if convolution.in_channels != RGB_CHANNELS:
        raise ValueError(
            f"Expected a patch embedding of 3 channels, got {convolution.in_channels}: widen once, "
            "after loading the pretrained weights."
        )
    widened = nn.Conv2d(
        NUM_INPUT_CHANNELS,
        convolution.out_channels,
        kernel_size=convolution.kernel_size,
        stride=convolution.stride,
        padding=convolution.padding,
        bias=convolution.bias is not None,
        device=convolution.weight.device,
        dtype=convolution.weight.dtype,
    )
    with torch.no_grad():
        widened.weight.zero_()
        widened.weight[:, :RGB_CHANNELS] = convolution.weight
        if convolution.bias is not None:
            widened.bias.copy_(convolution.bias)
    return widened


def start_from_sine_cosine(vision_tower: nn.Module) -> None:
    """Replace a random SigLIP's position embeddings, in place.

    Hugging Face starts them near zero. Trained from there, the tiny model's patch features told
    nothing of where a patch lies (explained variance of its coordinates 0 after 18 000 steps).
    Values of the size of the patches' own stay visible. Not compared in a training from scratch.

    Args:
        vision_tower: Hugging Face's SigLIP, random weights, on a square grid.
    """
    positions = vision_tower.embeddings.position_embedding.weight
    side = math.isqrt(len(positions))
    with torch.no_grad():
        positions.copy_(sine_cosine_positions(side, positions.shape[1]))


class PatchPositions(nn.Module):
    """Learned position embeddings of projected patches, started from sines and cosines; ours.

    A language model's rotary positions count the patches row by row, so they tell a row better
    than a column, and a projector trained from scratch may not pass on where SigLIP's patches
    lie: of the tiny model's features SigLIP's explained 98 % of the variance of the coordinates,
    the projected ones 44 %, and expressions by the row were answered twice as well (74 %) as by
    the column (37 %). Trained on with these, 90 % and 82 % (docs/tiny_model.md).
    """

    def __init__(self, side: int, dim: int) -> None:
        """
        Args:
            side: S, patches along one side.
            dim: width D of the projected patches, a multiple of 4.

        Raises:
            ValueError: the width is no multiple of 4.
        """
        super().__init__()
        self.weight = nn.Parameter(sine_cosine_positions(side, dim))

    def forward(self, patches: Tensor) -> Tensor:
        """Add them to (B, S * S, D) patches."""
        return patches + self.weight


def sine_cosine_positions(side: int, dim: int) -> Tensor:
    """Two-dimensional sine-cosine position embeddings.

    Inner products of such vectors depend only on the offset of two patches, so attention can
    learn a neighbourhood for all patches at once.

    Args:
        side: S, patches along one side.
        dim: width, a multiple of 4.

    Returns:
        (S * S, dim), values in -1 to 1.

    Raises:
        ValueError: the width is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(
            f"A hidden_size (of MODEL.LMM.VISION_CONFIG, or of TEXT_CONFIG with PATCH_POSITIONS) "
            f"is {dim}: take a multiple of 4, two waves for each of two axes."
        )
    # From a quarter turn per patch down to a quarter turn per image.
    rates = torch.logspace(0, -math.log10(side), dim // 4) * math.pi / 2
    angles = torch.arange(side)[:, None] * rates  # (S, dim / 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (S, dim / 2)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, -1)
