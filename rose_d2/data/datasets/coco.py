"""COCO 2017 as detectron2 datasets: instances (80 classes) and panoptic (133 classes).

The names are detectron2's own; registering here replaces its registrations, whose class names are
those of the annotators ("sky-other-merged") and whose loader stops at the first broken annotation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import BoxMode

from rose_d2.data.coco_files import (
    convert_annotation,
    covers_nothing,
    crowd_flag,
    describe,
    locate,
    object_area,
    plain_area,
    plain_id,
    read_coco,
    sized_images,
)
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
    json_file: str | Path, image_root: str | Path, thing_ids: Mapping[Any, int]
) -> list[dict[str, Any]]:
    """Reads a COCO instances JSON; images are opened only where it lacks their size.

    The dicts are those of detectron2's `load_coco_json`, with the `area` it leaves out.
    Annotations that cannot be used (see `rose_d2.data.coco_files`) are left out, counted and
    reported once; crowd regions stay.

    Args:
        json_file: the annotation file.
        image_root: folder that the images' `file_name` is relative to.
        thing_ids: category id in the file -> contiguous class.

    Returns:
        One dict per image, by image id: `file_name`, `image_id`, `height`, `width`, and
        `annotations` with `iscrowd`, `bbox`, `bbox_mode`, `category_id`, `segmentation`, `area`.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no COCO file, no object in it can be used, or, within
            `strict_annotations`, an annotation is broken.
    """
    coco = read_coco(json_file, needed=("images",))
    classes = {plain_id(category_id): class_id for category_id, class_id in thing_ids.items()}
    broken = BrokenAnnotations(json_file)
    for stray in coco.strays:
        broken.add("annotations of an image that is not listed", stray)
    records = []
    for image, path, height, width in sized_images(coco, image_root, broken):
        converted = [_convert(a, classes, height, width, broken) for a in image.annotations]
        record = {"file_name": str(path), "image_id": image.image_id}
        record |= {"height": height, "width": width}
        records.append(record | {"annotations": [a for a in converted if a is not None]})
    if coco.is_annotated:
        _require_objects(records, len(coco.annotations), broken)
    broken.report()
    return sorted(records, key=lambda record: _id_order(record["image_id"]))


def _id_order(image_id: int | str) -> tuple[bool, int | str]:
    """Numbers before text."""
    return isinstance(image_id, str), image_id


def _require_objects(records: list[dict[str, Any]], listed: int, broken: BrokenAnnotations) -> None:
    """Refuse a file without any object, and warn where most of them are crowds.

    Raises:
        ValueError: there is none.
    """
    usable = [annotation for record in records for annotation in record["annotations"]]
    objects = [(a, record) for record in records for a in record["annotations"] if not a["iscrowd"]]
    unseen = sum(covers_nothing(a, record["height"], record["width"]) for a, record in objects)
    if 2 * unseen > len(objects):
        broken.note(
            f"{unseen} of {len(objects)} objects are so small that they cover no pixel; corners "
            "are in pixels, not in shares of the image"
        )
    crowds = sum(annotation["iscrowd"] for annotation in usable)
    if crowds and 2 * crowds > len(usable):
        which = "all" if crowds == len(usable) else f"{crowds} of {len(usable)}"
        broken.note(
            f"{which} annotations are crowds (iscrowd 1), which are neither learned nor scored; "
            "set iscrowd to 0 where they are objects"
        )
    if crowds == len(usable) or unseen == len(objects):
        raise ValueError(
            f"{broken.source}: no object is left of {listed} annotations in {len(records)} images"
            + "".join(f"; {part}" for part in broken.parts())
            + ". Repair the file, or take another one."
        )


def _convert(
    annotation: Mapping[str, Any],
    classes: Mapping[Any, int],
    height: int,
    width: int,
    broken: BrokenAnnotations,
) -> dict[str, Any] | None:
    """An annotation as detectron2 has it; None, counted, where it cannot be used."""
    category_id = plain_id(annotation.get("category_id"))
    if category_id not in classes:
        where = f"{describe(annotation)}, category {annotation.get('category_id')}"
        broken.add("annotations of an unknown category", where)
        return None
    converted = convert_annotation(annotation, height, width, broken)
    if converted is None:
        return None
    return converted | {
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": classes[category_id],
        "area": object_area({**annotation, **converted}, height, width),
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
        `iscrowd`, `isthing`, and `area` where the file has it.

    Raises:
        ValueError: if an annotation has an image or a category that is not listed.
    """
    coco = read_coco(json_file, needed=("images", "annotations"))
    if coco.strays:
        raise ValueError(
            f"{json_file}: {coco.strays[0]}, which is not in its `images`; make or download the "
            "file again."
        )
    records = []
    broken = BrokenAnnotations(json_file)
    sizes = {image.image_id: found for image, *found in sized_images(coco, image_root, broken)}
    for annotation in coco.annotations:
        image = coco.images[plain_id(annotation["image_id"])]
        if image.image_id not in sizes:
            continue
        path, height, width = sizes[image.image_id]
        segments = _segments_info(annotation, json_file)
        records.append(
            {
                "file_name": str(path),
                "image_id": image.image_id,
                "height": height,
                "width": width,
                "pan_seg_file_name": str(locate(panoptic_root, annotation["file_name"])),
                "segments_info": [
                    _convert_segment(s, thing_ids, stuff_ids, json_file) for s in segments
                ],
            }
        )
    broken.report()
    return records


def _segments_info(annotation: Mapping[str, Any], json_file: str | Path) -> list[dict[str, Any]]:
    segments = annotation.get("segments_info")
    is_list = isinstance(segments, list) and all(isinstance(s, dict) for s in segments)
    if not is_list or not isinstance(annotation.get("file_name"), str):
        raise ValueError(
            f"{json_file}: {describe(annotation)} lacks the file_name of its PNG or a list "
            "segments_info; this is no panoptic annotation file."
        )
    return segments


def _convert_segment(
    segment: dict[str, Any],
    thing_ids: Mapping[int, int],
    stuff_ids: Mapping[int, int],
    json_file: str | Path,
) -> dict[str, Any]:
    category_id, segment_id = plain_id(segment.get("category_id")), plain_id(segment.get("id"))
    isthing = category_id in thing_ids
    if not isthing and category_id not in stuff_ids:
        raise ValueError(
            f"{json_file}: a segment has category {category_id}, which is neither a thing nor a "
            "stuff category of this dataset; the file was made with other categories."
        )
    if not isinstance(segment_id, int):
        raise ValueError(f"{json_file}: a segment has the id {segment.get('id')!r}, no number.")
    converted = {
        "id": segment_id,
        "category_id": thing_ids[category_id] if isthing else stuff_ids[category_id],
        "iscrowd": crowd_flag(segment.get("iscrowd")),
        "isthing": isthing,
    }
    area = plain_area(segment.get("area"))
    return converted if area is None else converted | {"area": area}
