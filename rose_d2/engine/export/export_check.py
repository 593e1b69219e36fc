"""Whether two models compute the same: the round trip of an export."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from rose_d2.engine.predictor import RosePredictor

NUM_PATCHES = 8


@torch.no_grad()
def model_outputs(cfg: CfgNode, model: nn.Module) -> dict[str, torch.Tensor]:
    """Run every part of a model on one fixed picture of noise with a fixed prior mask.

    Args:
        cfg: the config of the model.
        model: a ROSE model; left in evaluation mode.

    Returns:
        Float CPU tensors: patch_features (P, D), objectness_logits (P,), sam_features (E, g, g);
        of `NUM_PATCHES` patches mask_logits (K, m, m), category_embeddings (K, D),
        siglip_embeddings (K, Z) and the token_logits (K, V) of the language model's output layer.
    """
    predictor = RosePredictor(cfg, model)
    noise = np.random.default_rng(0)
    side = cfg.MODEL.LMM.IMAGE_SIZE
    picture = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
    item = predictor.make_input(picture, task="panoptic")
    prior = torch.zeros(1, side, side)
    prior[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    lmm_output, proposals, sam_features = model.perceive([item | {"prior_mask": prior}])
    count = proposals.objectness_logits.shape[1]
    patches = torch.linspace(0, count - 1, NUM_PATCHES).long().to(model.device)
    predictions = model.patch_analyzer.embed(proposals, 0, patches)
    (masks,) = model.mask_head.decode(
        sam_features, [predictions], [tuple(item["sam_image"].shape[-2:])]
    )
    outputs = {
        "patch_features": lmm_output.patch_features[0],
        "objectness_logits": proposals.objectness_logits[0],
        "sam_features": sam_features[0],
        "mask_logits": masks,
        "category_embeddings": predictions.category_embeddings,
        "siglip_embeddings": predictions.siglip_embeddings,
        "token_logits": model.backbone.logits(lmm_output.patch_features[0, patches]),
    }
    return {name: value.float().cpu() for name, value in outputs.items()}


def deviations(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Largest difference of each output as a share of the largest value before.

    Args:
        before: of `model_outputs`.
        after: the same, of the other model.
    """
    return {
        name: float((after[name] - value).abs().max() / value.abs().max().clamp(min=1e-12))
        for name, value in before.items()
    }
