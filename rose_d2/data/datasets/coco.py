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

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from rose_d2.data.datasets.registration import (
    BrokenAnnotations,
    DatasetEntry,
    distinct_colors,
    register,
)
from rose_d2.prompts.tasks import TASKS
from rose_d2.vocabulary.names import clean_class_names

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
HOW_TO_GET = (
    "Get the annotations of COCO and COCO-Stuff (`python datasets/download.py coco`), then run "
    "`python datasets/prepare_coco_stuff.py`."
)
IGNORE_LABEL = 255
FIRST_STUFF_ID = 92
# fmt: off
STUFF_LABELS = (
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage",
    "cardboard", "carpet", "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds",
    "counter", "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff", "fence", "floor-marble",
    "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog", "food-other",
    "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves",
    "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper",
    "pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing",
    "railroad", "river", "road", "rock", "roof", "rug", "salad", "sand", "sea", "shelf",
    "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw",
    "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable",
    "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile",
    "wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood",
)
# fmt: on
"""The 91 kinds of stuff as the label list spells them, of the ids 92 to 182."""
CLASS_OF_STUFF_LABEL = {FIRST_STUFF_ID + k: NUM_THINGS + k for k in range(len(STUFF_LABELS))}
CLASS_OF_LABEL: dict[int, int] = COCO_THING_IDS | CLASS_OF_STUFF_LABEL
"""Label -> contiguous class, 0 to 170; the gaps are the eleven things without any mask."""
COCO_STUFF_CLASSES, COCO_STUFF_SYNONYMS = clean_class_names(
    [*(category["name"] for category in COCO_CATEGORIES[:NUM_THINGS]), *STUFF_LABELS], "coco"
)
COCO_STUFF_COLORS = [*COCO_COLORS[:NUM_THINGS], *distinct_colors(len(STUFF_LABELS))]


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
            **TASKS["instance"].metadata,
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
            **TASKS["panoptic"].metadata,
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


@dataclass(frozen=True)
class CocoStuffPaths(CocoPaths):
    """Where the files of one split lie: COCO's, the download's and those that are made."""

    @property
    def stuff_thing_maps(self) -> Path:
        """Folder of the download's label maps."""
        return self.root / "coco" / "stuffthingmaps" / f"{self.split}2017"

    @property
    def joined_json(self) -> Path:
        """Made: the stuff of the label maps joined with COCO's instances."""
        return self.root / "coco" / "annotations" / f"cocostuff_panoptic_{self.split}2017.json"

    @property
    def joined_root(self) -> Path:
        """Made: the PNGs of `joined_json`."""
        return self.root / "coco" / f"cocostuff_panoptic_{self.split}2017"

    @property
    def sem_seg_root(self) -> Path:
        """Made: the label maps with contiguous classes."""
        return self.root / "coco" / f"cocostuff_sem_seg_{self.split}2017"


def contiguous_labels(label_map: np.ndarray, source: str | Path) -> np.ndarray:
    """Brings a label map of the download to contiguous classes.

    Args:
        label_map: uint8 (H, W), label minus 1; 255 is unlabelled.
        source: its file, for the message.

    Returns:
        uint8 (H, W), 0 to 170 and 255.

    Raises:
        ValueError: a value is no label of COCO-Stuff.
    """
    table = np.full(256, IGNORE_LABEL, dtype=np.uint8)
    for label, class_id in CLASS_OF_LABEL.items():
        table[label - 1] = class_id
    known = {*(label - 1 for label in CLASS_OF_LABEL), IGNORE_LABEL}
    strange = sorted(set(np.unique(label_map).tolist()) - known)
    if strange:
        raise ValueError(
            f"The label map {source} has the values {strange}, which are no labels of COCO-Stuff "
            "(label minus 1, 255 for unlabelled); unpack stuffthingmaps_trainval2017.zip again."
        )
    return table[label_map]


def _load(paths: CocoStuffPaths) -> list[dict[str, Any]]:
    records = load_coco_panoptic(
        paths.joined_json, paths.image_root, paths.joined_root, COCO_THING_IDS, CLASS_OF_STUFF_LABEL
    )
    for record in records:
        label_file = paths.sem_seg_root / f"{Path(record['file_name']).stem}.png"
        record["sem_seg_file_name"] = str(label_file)
    return records


def _metadata(paths: CocoStuffPaths) -> dict[str, Any]:
    return {
        **TASKS["semantic"].metadata,
        "thing_classes": COCO_STUFF_CLASSES[:NUM_THINGS],
        "thing_colors": COCO_STUFF_COLORS[:NUM_THINGS],
        "thing_dataset_id_to_contiguous_id": dict(COCO_THING_IDS),
        "stuff_classes": list(COCO_STUFF_CLASSES),
        "stuff_colors": list(COCO_STUFF_COLORS),
        "stuff_dataset_id_to_contiguous_id": dict(CLASS_OF_LABEL),
        "class_synonyms": list(COCO_STUFF_SYNONYMS),
        "ignore_label": IGNORE_LABEL,
        "label_divisor": 1000,
        "image_root": str(paths.image_root),
        "image_source": IMAGE_SOURCE,
        "sem_seg_root": str(paths.sem_seg_root),
        "panoptic_json": str(paths.joined_json),
        "panoptic_root": str(paths.joined_root),
    }


def register_coco_stuff(root: str | Path) -> None:
    """Registers coco_2017_{train,val}_stuff_sem_seg; nothing is read.

    Args:
        root: the datasets folder, the parent of `coco`; `~` is expanded.
    """
    for split, num_images in COCO_NUM_IMAGES.items():
        paths = CocoStuffPaths(Path(root).expanduser(), split)
        entry = DatasetEntry(
            name=f"coco_2017_{split}_stuff_sem_seg",
            load=lambda paths=paths: _load(paths),
            metadata=_metadata(paths),
            files=(paths.image_root, paths.joined_json, paths.joined_root, paths.sem_seg_root),
            how_to_get=HOW_TO_GET,
            num_images=num_images,
        )
        register(entry)


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
            _convert_segment(s, thing_ids, stuff_ids, json_file)
            for s in annotation["segments_info"]
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


def _convert_segment(
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
