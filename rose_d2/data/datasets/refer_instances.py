"""The `instances.json` of the REFER layout: images with all their annotated objects."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from rose_d2.data.annotated_regions import segmentation_to_rle
from rose_d2.data.datasets.broken import BrokenAnnotations

INSTANCES_KEYS = ("images", "annotations", "categories")


@dataclass
class AnnotatedImage:
    """An image of instances.json with its objects.

    Attributes:
        record: as in the file, with id, file_name, height and width.
        annotations: the usable objects in file order, as in detectron2's dataset dicts.
        positions: annotation id -> index into `annotations`.
        unusable_ids: annotations that were left out.
    """

    record: dict[str, Any]
    annotations: list[dict[str, Any]] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)
    unusable_ids: set[int] = field(default_factory=set)


def read_annotated_images(
    path: Path, references: list[dict[str, Any]], thing_ids: Mapping[int, int] | None
) -> dict[int, AnnotatedImage]:
    """Reads the images that references need; what is broken is left out, counted and reported.

    Args:
        path: the instances.json.
        references: records of a refs(<split_by>).p or grefs(<split_by>).json.
        thing_ids: category id -> contiguous id; None counts the file's sorted ids from 0; empty
            gives every object class -1.

    Returns:
        The images by id; those that the file lacks are absent.

    Raises:
        ValueError: if the file is damaged or of another format.
    """
    instances = _read_instances(path)
    if thing_ids is None:
        category_ids = sorted(category["id"] for category in instances["categories"])
        thing_ids = {category_id: index for index, category_id in enumerate(category_ids)}
    wanted = {reference["image_id"] for reference in references}
    # gRefCOCO leaves crowds out of its targets, so there they stay crowds.
    described_ids = {r["ann_id"] for r in references if not isinstance(r["ann_id"], list)}
    images = {i["id"]: AnnotatedImage(i) for i in instances["images"] if i["id"] in wanted}
    broken = BrokenAnnotations(path)
    for annotation in instances["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            continue
        converted = _convert_annotation(annotation, image.record, thing_ids, broken)
        if converted is None:
            image.unusable_ids.add(annotation["id"])
            continue
        # A crowd that somebody describes is an answer, not a region to ignore.
        if annotation["id"] in described_ids:
            converted["iscrowd"] = 0
        image.positions[annotation["id"]] = len(image.annotations)
        image.annotations.append(converted)
    broken.report()
    return images


def target_ids(reference: dict[str, Any]) -> list[int]:
    """Annotations that a reference is about.

    Args:
        reference: its `ann_id` is one id, or, in gRefCOCO, a list of them, [-1] for nothing.
    """
    ann_id = reference["ann_id"]
    return [i for i in ann_id if i != -1] if isinstance(ann_id, list) else [ann_id]


def read_json(path: Path) -> Any:
    """Reads an annotation file.

    Raises:
        ValueError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); get the file again.") from error


def _read_instances(path: Path) -> dict[str, Any]:
    instances = read_json(path)
    missing = [key for key in INSTANCES_KEYS if key not in instances]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}: it is not in the COCO instances format; get the "
            "file again."
        )
    return instances


def _convert_annotation(
    annotation: dict[str, Any],
    image: dict[str, Any],
    thing_ids: Mapping[int, int],
    broken: BrokenAnnotations,
) -> dict[str, Any] | None:
    where = f"annotation {annotation['id']} of image {image['id']}"
    category_id = annotation.get("category_id")
    if thing_ids and category_id not in thing_ids:
        broken.add("annotations of an unknown category", f"{where}, category {category_id!r}")
        return None
    if len(annotation.get("bbox") or ()) != 4:
        broken.add("annotations without a box", where)
        return None
    try:
        segmentation = _usable_segmentation(annotation.get("segmentation"), image)
    except ValueError:
        broken.add("annotations whose mask has another size than their image", where)
        return None
    if segmentation is None:
        broken.add("annotations without a mask", where)
        return None
    return {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": thing_ids.get(category_id, -1),
        "segmentation": segmentation,
        "iscrowd": annotation.get("iscrowd", 0),
    }


def _usable_segmentation(segmentation: Any, image: dict[str, Any]) -> Any:
    """The polygons that enclose something, or one run-length code; None if nothing was drawn."""
    if isinstance(segmentation, list) and not any(isinstance(s, dict) for s in segmentation):
        return [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0] or None
    # RefCLEF has one object in several run-length codes, which may overlap.
    code = segmentation_to_rle(segmentation, image["height"], image["width"])
    return code if code is not None and mask_util.area(code) else None
