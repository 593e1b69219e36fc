"""The model; importing it fills the registries."""

import rose_d2.modeling.backbone.llava_onevision
import rose_d2.modeling.mask_head
import rose_d2.modeling.meta_arch.rose
import rose_d2.modeling.patch_analyzer  # noqa: F401
