"""Annotated objects of a dataset dict, decoded at the image's original size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from rose_d2.data.annotated_regions import segmentation_to_rle


@dataclass(frozen=True)
class GroundTruthObjects:
    """N objects of one image; crowd regions are not objects.

    Attributes:
        masks: bool (N, H, W).
        classes: N contiguous class ids.
        is_stuff: N flags.
    """

    masks: Tensor
    classes: list[int]
    is_stuff: list[bool]

    def __len__(self) -> int:
        return len(self.classes)


def load_objects(dataset_dict: dict) -> GroundTruthObjects | None:
    """Decode the instances or the panoptic segments of a dataset dict.

    Args:
        dataset_dict: with height, width and either "annotations" (COCO style, contiguous
            categories) or "pan_seg_file_name" and "segments_info".

    Returns:
        The objects, all segments of one stuff class joined into one; None if the dict has neither.
    """
    if "annotations" in dataset_dict:
        return _load_annotations(dataset_dict)
    if "pan_seg_file_name" in dataset_dict:
        return _load_segments(dataset_dict)
    return None


def decode_segmentation(annotation: dict, height: int, width: int) -> Tensor:
    """Mask of one COCO-style annotation (polygons or any RLE), bool (H, W)."""
    rle = segmentation_to_rle(annotation.get("segmentation"), height, width)
    if rle is None:
        return torch.zeros(height, width, dtype=torch.bool)
    return torch.from_numpy(np.ascontiguousarray(coco_mask.decode(rle))).bool()


def _load_annotations(dataset_dict: dict) -> GroundTruthObjects:
    size = dataset_dict["height"], dataset_dict["width"]
    objects = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
    masks = torch.zeros(len(objects), *size, dtype=torch.bool)
    for mask, annotation in zip(masks, objects, strict=True):
        mask.copy_(decode_segmentation(annotation, *size))
    return GroundTruthObjects(masks, [a["category_id"] for a in objects], [False] * len(objects))


def _load_segments(dataset_dict: dict) -> GroundTruthObjects:
    with PathManager.open(dataset_dict["pan_seg_file_name"], "rb") as file:
        colours = np.asarray(Image.open(file))
    red, green, blue = np.moveaxis(colours[..., :3].astype(np.int32), 2, 0)  # (H, W) each
    ids = torch.from_numpy(red + 256 * green + 65536 * blue)
    groups: dict[tuple, list[int]] = {}
    for segment in dataset_dict["segments_info"]:
        if segment.get("iscrowd", 0):
            continue
        is_stuff = not segment["isthing"]
        key = (is_stuff, segment["category_id"], None if is_stuff else segment["id"])
        groups.setdefault(key, []).append(segment["id"])
    masks = torch.zeros(len(groups), *ids.shape, dtype=torch.bool)
    for mask, segment_ids in zip(masks, groups.values(), strict=True):
        for segment_id in segment_ids:
            mask |= ids == segment_id
    return GroundTruthObjects(
        masks, [class_id for _, class_id, _ in groups], [is_stuff for is_stuff, _, _ in groups]
    )
