"""Inputs of any size that need no dataset, for measuring and planning."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Instances

from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.instructions import build_instruction, counting_response
from rose_d2.structures.category_names import CategoryNames

# Metadata only: no image of it exists.
DATASET = "benchmark_synthetic"


_NAMES = ("person", "bicycle", "traffic light", "dog", "dining table", "car", "potted plant", "cup")


# COCO's most frequent original size (height, width).
_ORIGINAL_SIZE = (480, 640)


def without_downloads(cfg: CfgNode) -> CfgNode:
    """The same model with random weights: nothing is read or fetched.

    The built-in tokenizer stands in for that of the checkpoint; it spells words with more tokens,
    which is little beside the tokens of the image.

    Args:
        cfg: any config of this repository, also one whose checkpoints are not at hand.

    Returns:
        A changed copy, not frozen.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.LMM.PRETRAINED = ""
    cfg.MODEL.LMM.TOKENIZER = "tiny"
    cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT = ""
    cfg.MODEL.SIGLIP_TEXT.SOURCE = "ngram"
    return cfg


def synthetic_inputs(
    cfg: CfgNode, batch_size: int, *, training: bool, num_objects: int = 10
) -> list[dict]:
    """Make a batch as `RoseDatasetMapper` does: an instance task on noise.

    Args:
        cfg: gives the sizes of both views.
        batch_size: B.
        training: add ground truth: boxes on a diagonal, from small to large, with names. Ten of
            them have more matched patches than MODEL.ROSE.MAX_PAIRS keeps of an image.
        num_objects: N.

    Returns:
        B dicts, see `ROSE.forward`.
    """
    MetadataCatalog.get(DATASET).set(thing_classes=list(_NAMES), evaluator_type="coco")
    generator = torch.Generator().manual_seed(0)
    return [_item(cfg, index, training, num_objects, generator) for index in range(batch_size)]


def _item(
    cfg: CfgNode, index: int, training: bool, num_objects: int, generator: torch.Generator
) -> dict:
    side, longest = cfg.MODEL.LMM.IMAGE_SIZE, cfg.MODEL.MASK_HEAD.IMAGE_SIZE
    names = [_NAMES[number % len(_NAMES)] for number in range(num_objects)]
    response = counting_response(names, cfg.MODEL.ROSE.MAX_COUNTED_NAMES) if training else None
    height, width = _ORIGINAL_SIZE
    item = {
        "image": _noise((3, side, side), generator),
        "sam_image": _noise((3, longest * height // width, longest), generator),
        "height": height,
        "width": width,
        "file_name": f"synthetic {index}",
        "image_id": index,
        "dataset_name": DATASET,
        "task": "instance",
        "conversation": Conversation(build_instruction("instance"), response),
    }
    if training:
        item["instances"] = _boxes(side, names)
        item["negative_points"] = torch.zeros(0, 2)
        item["ignore_mask"] = torch.zeros(side, side, dtype=torch.bool)
    return item


def _noise(shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _boxes(side: int, names: list[str]) -> Instances:
    masks = torch.zeros(len(names), side, side, dtype=torch.bool)
    for index in range(len(names)):
        start = index * side // (len(names) + 1)
        extent = side * (index + 1) // (4 * len(names)) + side // 20 + 1
        masks[index, start : start + extent, start : start + extent] = True
    instances = Instances((side, side))
    instances.gt_masks = BitMasks(masks)
    instances.gt_classes = torch.tensor([_NAMES.index(name) for name in names])
    instances.gt_category_names = CategoryNames(names)
    instances.gt_is_stuff = torch.zeros(len(names), dtype=torch.bool)
    return instances
