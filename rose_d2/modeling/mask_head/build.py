"""Registry of mask heads."""

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

MASK_HEAD_REGISTRY = Registry("ROSE_MASK_HEAD")
MASK_HEAD_REGISTRY.__doc__ = """
Modules that draw masks from embeddings.

A registered class is called with (cfg) and offers

* `prompt_dim`: E, width of the embeddings it takes;
* `encode(images) -> (B, E, g, g)`: features of a list of uint8 RGB images (3, h, w);
* `decode(image_embeddings, predictions, input_sizes) -> list of (K, m, m)`: low-resolution logits;
* `upscale(low_res_masks, input_size, output_size) -> (K, H, W)`: logits at the original size;
* `targets(masks, input_size) -> (soft targets, valid)`: ground truth in the logits' frame.
"""


def build_mask_head(cfg: CfgNode) -> nn.Module:
    """Build MODEL.MASK_HEAD.NAME."""
    return MASK_HEAD_REGISTRY.get(cfg.MODEL.MASK_HEAD.NAME)(cfg)
