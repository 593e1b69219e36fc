"""The training half of ROSE from a config."""

from __future__ import annotations

from detectron2.config import CfgNode

from rose_d2.modeling.backbone.lmm import LMMBackbone
from rose_d2.modeling.category_decoder import CategoryDecoder
from rose_d2.modeling.criterion import LossWeights, RoseCriterion
from rose_d2.modeling.patch_analyzer.assignment import NegativeCounts, PatchAssigner
from rose_d2.modeling.patch_analyzer.super_patch import SuperPatchLayout
from rose_d2.modeling.supervision import Supervisor
from rose_d2.modeling.text_embeddings import TextEmbeddingBank


def build_supervisor(
    cfg: CfgNode, backbone: LMMBackbone, decoder: CategoryDecoder, bank: TextEmbeddingBank
) -> Supervisor:
    """The training half, from MODEL.SUPER_PATCH and MODEL.ROSE.

    Args:
        cfg: the full config.
        backbone: the LMM, for its patch grid.
        decoder: makes the loss of the names.
        bank: text embeddings of the class names, the targets of the SigLIP head.
    """
    rose = cfg.MODEL.ROSE
    super_patch = cfg.MODEL.SUPER_PATCH
    weights = LossWeights(**{name.lower(): value for name, value in rose.LOSS_WEIGHT.items()})
    return Supervisor(
        assigner=PatchAssigner(
            backbone.grid,
            SuperPatchLayout(super_patch.LAYOUT, super_patch.SCALE_BOUNDS),
            super_patch.WINDOW,
            NegativeCounts(
                rose.NEGATIVES_WRONG_ROLE, rose.NEGATIVES_NOT_ASKED, rose.NEGATIVES_RANDOM
            ),
        ),
        criterion=RoseCriterion(weights, rose.SIGLIP_TEMPERATURE),
        category_decoder=decoder,
        text_embeddings=bank,
        max_pairs=rose.MAX_PAIRS,
    )
