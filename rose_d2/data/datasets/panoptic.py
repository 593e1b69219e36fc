"""Loader of the COCO panoptic layout: one JSON with segments, one PNG per image with their ids."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def load_coco_panoptic(
    json_file: str | Path,
    image_root: str | Path,
    panoptic_root: str | Path,
    thing_ids: Mapping[int, int],
    stuff_ids: Mapping[int, int],
) -> list[dict[str, Any]]:
    """Reads a COCO panoptic JSON; no PNG is opened.

    detectron2's own loader gives neither the image size nor another extension than .jpg.

    Args:
        json_file: the annotation file.
        image_root: folder that the images' `file_name` is relative to.
        panoptic_root: folder of the PNGs.
        thing_ids: category id in the file -> contiguous id, for things.
        stuff_ids: the same for stuff; an id that is in both is a thing.

    Returns:
        One dict per annotated image, in the file's order: `file_name`, `image_id`, `height`,
        `width`, `pan_seg_file_name`, and `segments_info` with `id`, `category_id` (contiguous),
        `iscrowd` and `isthing`.

    Raises:
        ValueError: if an annotation has an image or a category that is not listed.
    """
    with open(json_file, encoding="utf-8") as file:
        content = json.load(file)
    images = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            raise ValueError(
                f"{json_file}: an annotation belongs to image {annotation['image_id']!r}, which "
                "is not in its `images`; make or download the file again."
            )
        segments = [
            _convert(s, thing_ids, stuff_ids, json_file) for s in annotation["segments_info"]
        ]
        records.append(
            {
                "file_name": str(Path(image_root) / image["file_name"]),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "pan_seg_file_name": str(Path(panoptic_root) / annotation["file_name"]),
                "segments_info": segments,
            }
        )
    return records


def _convert(
    segment: dict[str, Any],
    thing_ids: Mapping[int, int],
    stuff_ids: Mapping[int, int],
    json_file: str | Path,
) -> dict[str, Any]:
    category_id = segment["category_id"]
    isthing = category_id in thing_ids
    if not isthing and category_id not in stuff_ids:
        raise ValueError(
            f"{json_file}: a segment has category {category_id}, which is neither a thing nor a "
            "stuff category of this dataset; the file was made with other categories."
        )
    return {
        "id": segment["id"],
        "category_id": thing_ids[category_id] if isthing else stuff_ids[category_id],
        "iscrowd": segment.get("iscrowd", 0),
        "isthing": isthing,
    }
