"""Inputs of any size that need no dataset, for measuring and planning."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Instances

from rose_d2.layers.masks import mask_centre
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.instructions import build_instruction, counting_response
from rose_d2.structures.category_names import CategoryNames

# What is planned and measured by default, and the most: Mapillary Vistas has such scenes.
FEW_OBJECTS, MANY_OBJECTS = 10, 200
# Metadata only: no image of it exists.
DATASET = "benchmark_synthetic"


_NAMES = ("person", "bicycle", "traffic light", "dog", "dining table", "car", "potted plant", "cup")


# COCO's most frequent original size (height, width).
COCO_SIZE = (480, 640)


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
    cfg: CfgNode,
    batch_size: int,
    *,
    training: bool,
    num_objects: int = FEW_OBJECTS,
    image_size: tuple[int, int] = COCO_SIZE,
) -> list[dict]:
    """Make a batch as `RoseDatasetMapper` does: an instance task on noise.

    Args:
        cfg: gives the sizes of both views.
        batch_size: B.
        training: add ground truth: boxes on a lattice, from small to large, with names.
        num_objects: N.
        image_size: (height, width) of the original pictures, not higher than wide.

    Returns:
        B dicts, see `ROSE.forward`.
    """
    MetadataCatalog.get(DATASET).set(thing_classes=list(_NAMES), evaluator_type="coco")
    generator = torch.Generator().manual_seed(0)
    return [
        _item(cfg, index, training, num_objects, image_size, generator)
        for index in range(batch_size)
    ]


def _item(
    cfg: CfgNode,
    index: int,
    training: bool,
    num_objects: int,
    image_size: tuple[int, int],
    generator: torch.Generator,
) -> dict:
    side, longest = cfg.MODEL.LMM.IMAGE_SIZE, cfg.MODEL.MASK_HEAD.IMAGE_SIZE
    names = [_NAMES[number % len(_NAMES)] for number in range(num_objects)]
    response = counting_response(names, cfg.MODEL.ROSE.MAX_COUNTED_NAMES) if training else None
    height, width = image_size
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
    count = len(names)
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    columns = math.ceil(math.sqrt(count))
    for index, mask in enumerate(masks):
        top, left = (place * side // columns for place in divmod(index, columns))
        extent = side * (index + 1) // (4 * count) + side // 20 + 1
        mask[top : top + extent, left : left + extent] = True
    instances = Instances((side, side))
    instances.gt_masks = BitMasks(masks)
    instances.gt_classes = torch.tensor([_NAMES.index(name) for name in names])
    instances.gt_category_names = CategoryNames(names)
    instances.gt_is_stuff = torch.zeros(count, dtype=torch.bool)
    centres = [mask_centre(mask) for mask in masks]
    instances.gt_centres = torch.tensor(centres, dtype=torch.float64)
    instances.gt_areas = masks.flatten(1).sum(1)
    return instances
