"""Segment Anything in its official sizes and in a tiny one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from segment_anything import sam_model_registry
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

OFFICIAL = ("vit_h", "vit_l", "vit_b")
OFFICIAL_IMAGE_SIZE = 1024


def build_sam(cfg: CfgNode) -> Sam:
    """Build MODEL.MASK_HEAD.SAM_ARCH and load MODEL.MASK_HEAD.SAM_CHECKPOINT if one is named.

    Raises:
        ValueError: for an unknown size, an image size the official models do not take, or
            weights that do not fit.
        FileNotFoundError: if the checkpoint does not exist.
    """
    head = cfg.MODEL.MASK_HEAD
    if head.SAM_ARCH == "tiny":
        sam = build_sam_tiny(head.IMAGE_SIZE)
    elif head.SAM_ARCH in OFFICIAL:
        if head.IMAGE_SIZE != OFFICIAL_IMAGE_SIZE:
            raise ValueError(
                f"MODEL.MASK_HEAD.IMAGE_SIZE is {head.IMAGE_SIZE}; SAM {head.SAM_ARCH} takes "
                f"{OFFICIAL_IMAGE_SIZE}."
            )
        sam = sam_model_registry[head.SAM_ARCH]()
    else:
        known = ", ".join((*OFFICIAL, "tiny"))
        raise ValueError(f"MODEL.MASK_HEAD.SAM_ARCH is {head.SAM_ARCH!r}; allowed are {known}.")
    if head.SAM_CHECKPOINT:
        _load(sam, Path(head.SAM_CHECKPOINT).expanduser())
    return sam


def build_sam_tiny(image_size: int) -> Sam:
    """SAM's own classes with small numbers, for CPUs.

    Args:
        image_size: side of the padded view in pixels, a multiple of 16.
    """
    grid = image_size // 16
    width = 64
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size,
            patch_size=16,
            embed_dim=128,
            depth=4,
            num_heads=4,
            out_chans=width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=8,
            # One local block, then global ones: clip-art is small and so is the grid.
            global_attn_indexes=(1, 2, 3),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=8,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=256, num_heads=4),
            transformer_dim=width,
            iou_head_depth=2,
            iou_head_hidden_dim=width,
        ),
    )


def save_sam(mask_head: nn.Module, path: Path) -> None:
    """Write image encoder, prompt encoder and mask decoder as segment-anything's own file.

    Args:
        mask_head: a `SAMMaskHead`.
        path: file to write, for MODEL.MASK_HEAD.SAM_CHECKPOINT.
    """
    # Copies: a checkpoint that holds views would hold the tensors they look into.
    state = {name: value.to("cpu", copy=True) for name, value in mask_head.state_dict().items()}
    torch.save(state, path)


def _load(sam: Sam, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"MODEL.MASK_HEAD.SAM_CHECKPOINT {path} does not exist; download SAM's weights, or "
            'set it to "" to start from random ones.'
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        sam.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit MODEL.MASK_HEAD.SAM_ARCH: {error}") from error
