"""Registry of patch analyzers."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

PATCH_ANALYZER_REGISTRY = Registry("PATCH_ANALYZER")
PATCH_ANALYZER_REGISTRY.__doc__ = """
Modules that turn the LMM's patch features into candidates for segmentation.

A registered class is called with (cfg, input_shape, prompt_dim): the config, the ShapeSpec of
"patch_features", and the width of the mask head's prompts. It offers

* `propose(lmm_output) -> QueryProposals`: features, objectness logits and roles of all candidates;
* `embed(proposals, image_index, candidates) -> PatchPredictions`: embeddings of chosen ones.
"""


def build_patch_analyzer(cfg: CfgNode, input_shape: ShapeSpec, prompt_dim: int) -> nn.Module:
    """Build MODEL.PATCH_ANALYZER.NAME.

    Args:
        cfg: the config.
        input_shape: channels D and grid side S of the patch features.
        prompt_dim: E, width of the mask head's prompt embeddings.
    """
    name = cfg.MODEL.PATCH_ANALYZER.NAME
    return PATCH_ANALYZER_REGISTRY.get(name)(cfg, input_shape, prompt_dim)
