"""The model; importing it fills the registries."""

from rose_d2.modeling.backbone.llava_onevision import LlavaOneVisionBackbone
from rose_d2.modeling.mask_head import SAMMaskHead
from rose_d2.modeling.meta_arch.rose import ROSE
from rose_d2.modeling.patch_analyzer import StandardPatchAnalyzer

__all__ = ["ROSE", "LlavaOneVisionBackbone", "SAMMaskHead", "StandardPatchAnalyzer"]
