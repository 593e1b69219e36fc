"""COCO 2017 as detectron2 datasets: instances (80 classes) and panoptic (133 classes).

The names are detectron2's own; registering here replaces its registrations, whose class names are
those of the annotators ("sky-other-merged") and whose loader stops at the first broken annotation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from rose_d2.data.datasets.broken import BrokenAnnotations
from rose_d2.data.datasets.class_names import clean_class_names
from rose_d2.data.datasets.panoptic import load_coco_panoptic
from rose_d2.data.datasets.registration import DatasetEntry, register

logger = logging.getLogger(__name__)

COCO_NUM_IMAGES = {"train": 118287, "val": 5000}
NUM_THINGS = 80
IMAGE_SOURCE = "coco"
HOW_TO_GET_COCO = (
    "Run `python datasets/download.py coco`, or get the archives from "
    "https://cocodataset.org/#download and unpack them as datasets/README.md draws it."
)

# detectron2 lists the 80 things first, then the 53 kinds of panoptic stuff.
COCO_CLASSES, COCO_SYNONYMS = clean_class_names([c["name"] for c in COCO_CATEGORIES], "coco")
COCO_COLORS: list[list[int]] = [category["color"] for category in COCO_CATEGORIES]
COCO_PANOPTIC_IDS: dict[int, int] = {c["id"]: index for index, c in enumerate(COCO_CATEGORIES)}
"""Category id in the files -> contiguous class: things 0..79, stuff 80..132."""
COCO_THING_IDS = dict(list(COCO_PANOPTIC_IDS.items())[:NUM_THINGS])
COCO_PANOPTIC_STUFF_IDS = dict(list(COCO_PANOPTIC_IDS.items())[NUM_THINGS:])


@dataclass(frozen=True)
class CocoPaths:
    """Where the official files of one split lie.

    Attributes:
        root: the datasets folder, the parent of `coco`.
        split: "train" or "val".
    """

    root: Path
    split: str

    @property
    def image_root(self) -> Path:
        """Folder of the JPEGs."""
        return self.root / "coco" / f"{self.split}2017"

    @property
    def instances_json(self) -> Path:
        """Instances of the 80 things."""
        return self.root / "coco" / "annotations" / f"instances_{self.split}2017.json"

    @property
    def panoptic_json(self) -> Path:
        """Segments of the 133 panoptic classes."""
        return self.root / "coco" / "annotations" / f"panoptic_{self.split}2017.json"

    @property
    def panoptic_root(self) -> Path:
        """Folder of the panoptic PNGs."""
        return self.root / "coco" / f"panoptic_{self.split}2017"


def load_coco_instances(
    json_file: str | Path, image_root: str | Path, thing_ids: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Reads a COCO instances JSON; no image is opened.

    The dicts are those of detectron2's `load_coco_json`. Annotations that cannot be used (no
    polygon, an image or a category that is not listed, a mask of another size than its image)
    are left out, counted and reported once; crowd regions stay.

    Args:
        json_file: the annotation file.
        image_root: folder that the images' `file_name` is relative to.
        thing_ids: category id in the file -> contiguous class.

    Returns:
        One dict per image, by image id: `file_name`, `image_id`, `height`, `width`, and
        `annotations` with `iscrowd`, `bbox`, `bbox_mode`, `category_id`, `segmentation`.

    Raises:
        ValueError: a broken annotation within `strict_annotations`.
    """
    with open(json_file, encoding="utf-8") as file:
        content = json.load(file)
    records = {
        image["id"]: {
            "file_name": str(Path(image_root) / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": [],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    }
    broken = BrokenAnnotations(json_file)
    for annotation in content["annotations"]:
        record = records.get(annotation["image_id"])
        where = f"annotation {annotation['id']} of image {annotation['image_id']}"
        if record is None:
            broken.add("annotations of an image that is not listed", where)
            continue
        category_id = annotation["category_id"]
        if category_id not in thing_ids:
            broken.add("annotations of an unknown category", f"{where}, category {category_id}")
            continue
        segmentation = _usable_segmentation(annotation, record, where, broken)
        if len(annotation.get("bbox") or ()) != 4:
            broken.add("annotations without a box", where)
        elif segmentation is not None:
            converted = _convert(annotation, thing_ids[category_id], segmentation)
            record["annotations"].append(converted)
    broken.report()
    return list(records.values())


def _usable_segmentation(
    annotation: dict[str, Any], record: dict[str, Any], where: str, broken: BrokenAnnotations
) -> Any:
    """Polygons with at least three corners, or a compressed RLE; None, counted, without a mask."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        size = [record["height"], record["width"]]
        if list(segmentation["size"]) != size:
            broken.add("annotations whose mask has another size than their image", where)
            return None
        is_compressed = not isinstance(segmentation["counts"], list)
        return segmentation if is_compressed else coco_mask.frPyObjects(segmentation, *size)
    polygons = [p for p in segmentation or [] if len(p) >= 6 and len(p) % 2 == 0]
    if not polygons:
        broken.add("annotations without a polygon", where)
        return None
    return polygons


def _convert(annotation: dict[str, Any], class_id: int, segmentation: Any) -> dict[str, Any]:
    return {
        "iscrowd": annotation.get("iscrowd", 0),
        "bbox": annotation["bbox"],
        "category_id": class_id,
        "segmentation": segmentation,
        "bbox_mode": BoxMode.XYWH_ABS,
    }


def _load_instances(paths: CocoPaths) -> list[dict[str, Any]]:
    """Instances; with panoptic annotations on disk also where stuff is, which is a negative."""
    records = load_coco_instances(paths.instances_json, paths.image_root, COCO_THING_IDS)
    if not (paths.panoptic_json.exists() and paths.panoptic_root.is_dir()):
        logger.info("No %s: stuff will not serve as negatives.", paths.panoptic_json)
        return records
    segments = {
        record["image_id"]: {key: record[key] for key in ("pan_seg_file_name", "segments_info")}
        for record in _load_panoptic(paths)
    }
    return [record | segments.get(record["image_id"], {}) for record in records]


def _load_panoptic(paths: CocoPaths) -> list[dict[str, Any]]:
    return load_coco_panoptic(
        paths.panoptic_json,
        paths.image_root,
        paths.panoptic_root,
        COCO_THING_IDS,
        COCO_PANOPTIC_STUFF_IDS,
    )


def _common_metadata(paths: CocoPaths) -> dict[str, Any]:
    return {
        "thing_classes": COCO_CLASSES[:NUM_THINGS],
        "thing_colors": COCO_COLORS[:NUM_THINGS],
        "thing_dataset_id_to_contiguous_id": dict(COCO_THING_IDS),
        # In the instance datasets too, for the stuff in their segments_info.
        "stuff_classes": list(COCO_CLASSES),
        "stuff_colors": list(COCO_COLORS),
        "stuff_dataset_id_to_contiguous_id": dict(COCO_PANOPTIC_IDS),
        "image_root": str(paths.image_root),
        "image_source": IMAGE_SOURCE,
        "ignore_label": 255,
        "label_divisor": 1000,
        "panoptic_json": str(paths.panoptic_json),
        "panoptic_root": str(paths.panoptic_root),
    }


def _instance_entry(paths: CocoPaths) -> DatasetEntry:
    return DatasetEntry(
        name=f"coco_2017_{paths.split}",
        load=lambda: _load_instances(paths),
        metadata=_common_metadata(paths)
        | {
            "task": "instance",
            "evaluator_type": "coco",
            "json_file": str(paths.instances_json),
            "class_synonyms": COCO_SYNONYMS[:NUM_THINGS],
        },
        files=(paths.image_root, paths.instances_json),
        how_to_get=HOW_TO_GET_COCO,
        num_images=COCO_NUM_IMAGES[paths.split],
    )


def _panoptic_entry(paths: CocoPaths) -> DatasetEntry:
    return DatasetEntry(
        name=f"coco_2017_{paths.split}_panoptic",
        load=lambda: _load_panoptic(paths),
        metadata=_common_metadata(paths)
        | {
            "task": "panoptic",
            "evaluator_type": "coco_panoptic_seg",
            "class_synonyms": list(COCO_SYNONYMS),
        },
        files=(paths.image_root, paths.panoptic_json, paths.panoptic_root),
        how_to_get=HOW_TO_GET_COCO,
        num_images=COCO_NUM_IMAGES[paths.split],
    )


def register_coco(root: str | Path) -> None:
    """Registers coco_2017_{train,val} and coco_2017_{train,val}_panoptic; nothing is read.

    Args:
        root: the datasets folder, the parent of `coco`; `~` is expanded.
    """
    for split in COCO_NUM_IMAGES:
        paths = CocoPaths(Path(root).expanduser(), split)
        register(_instance_entry(paths))
        register(_panoptic_entry(paths))
