"""ADE20K, the 150 classes of the scene parsing benchmark: metadata, loaders and registration.

Class ids in the annotation files count from 0 in the order of the benchmark, 0 "wall" to 149
"flag"; 100 of them are things. `datasets/prepare_ade20k.py` makes what the loaders read.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from rose_d2.data.datasets.coco import load_coco_instances, load_coco_panoptic
from rose_d2.data.datasets.registration import DatasetEntry, distinct_colors, register
from rose_d2.prompts.tasks import TASKS
from rose_d2.vocabulary.names import clean_class_names

SPLIT_FOLDERS = {"train": "training", "val": "validation"}
NUM_IMAGES = {"train": 20210, "val": 2000}
IGNORE_LABEL = 255
NAME_PARTS = {"semantic": "sem_seg", "panoptic": "panoptic", "instance": "instance"}

CLASS_NAMES, CLASS_SYNONYMS = clean_class_names(ADE20K_SEM_SEG_CATEGORIES, "ade20k")
# fmt: off
STUFF_IDS = (
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59,
    60, 61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128,
    131, 140, 141, 145,
)
# fmt: on
THING_IDS = tuple(i for i in range(len(CLASS_NAMES)) if i not in STUFF_IDS)
"""Class k of the instance annotations, which count from 1, is the benchmark's THING_IDS[k - 1]."""

# In instance data things come first, since COCO evaluation wants them to be 0 to 99.
_THINGS_FIRST = THING_IDS + STUFF_IDS


class Ade20kPaths:
    """Where the files of one split lie.

    Args:
        root: the datasets folder, the parent of `ADEChallengeData2016`; `~` is expanded.
        split: one of `SPLIT_FOLDERS`.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.folder = Path(root).expanduser() / "ADEChallengeData2016"
        part = SPLIT_FOLDERS[split]
        self.image_root = self.folder / "images" / part
        self.label_root = self.folder / "annotations" / part
        self.instance_label_root = self.folder / "annotations_instance" / part
        self.sem_seg_root = self.folder / "annotations_detectron2" / part
        self.panoptic_json = self.folder / f"ade20k_panoptic_{split}.json"
        self.panoptic_root = self.folder / f"ade20k_panoptic_{split}"
        self.instance_json = self.folder / f"ade20k_instance_{split}.json"


def panoptic_categories() -> list[dict[str, Any]]:
    """The `categories` of the panoptic JSON: all classes."""
    colors = distinct_colors(len(CLASS_NAMES))  # panopticapi's tools stop without
    return [
        {"id": i, "name": name, "isthing": int(i in THING_IDS), "color": colors[i]}
        for i, name in enumerate(CLASS_NAMES)
    ]


def instance_categories() -> list[dict[str, Any]]:
    """The `categories` of the instance JSON: the things, with their ids among all classes."""
    return [{"id": i, "name": CLASS_NAMES[i]} for i in THING_IDS]


def load_semantic(paths: Ade20kPaths) -> list[dict[str, Any]]:
    """Dicts with the label PNG, for evaluation, and the segments, for training.

    Raises:
        ValueError: the panoptic JSON is damaged.
    """
    records = load_panoptic(paths)
    for record in records:
        label_file = paths.sem_seg_root / f"{Path(record['file_name']).stem}.png"
        record["sem_seg_file_name"] = str(label_file)
    return records


def load_panoptic(paths: Ade20kPaths) -> list[dict[str, Any]]:
    """Dicts with the panoptic PNG and its segments.

    Raises:
        ValueError: the panoptic JSON is damaged.
    """
    return load_coco_panoptic(
        paths.panoptic_json,
        paths.image_root,
        paths.panoptic_root,
        {i: i for i in THING_IDS},
        {i: i for i in STUFF_IDS},
    )


def load_instance(paths: Ade20kPaths) -> list[dict[str, Any]]:
    """Dicts with annotations of things (classes 0 to 99) and the segments, as negatives.

    Raises:
        ValueError: an annotation file is damaged, or the two do not belong together.
    """
    classes = {class_id: index for index, class_id in enumerate(_THINGS_FIRST)}
    thing_ids = {i: classes[i] for i in THING_IDS}
    panoptic = load_coco_panoptic(
        paths.panoptic_json,
        paths.image_root,
        paths.panoptic_root,
        thing_ids,
        {i: classes[i] for i in STUFF_IDS},
    )
    segments = {
        record["file_name"]: {key: record[key] for key in ("pan_seg_file_name", "segments_info")}
        for record in panoptic
    }
    records = load_coco_instances(paths.instance_json, paths.image_root, thing_ids)
    for record in records:
        if record["file_name"] not in segments:
            raise ValueError(
                f"{paths.panoptic_json} lacks {record['file_name']}, which {paths.instance_json} "
                "has; make both again with `python datasets/prepare_ade20k.py --overwrite`."
            )
        record |= segments[record["file_name"]]
    return records


LOADERS = {"semantic": load_semantic, "panoptic": load_panoptic, "instance": load_instance}


def dataset_name(task: str, split: str) -> str:
    """Registered name, e.g. "ade20k_sem_seg_val" for the semantic task."""
    return f"ade20k_{NAME_PARTS[task]}_{split}"


def ade20k_metadata(paths: Ade20kPaths, task: str) -> dict[str, Any]:
    """Metadata of one dataset, as detectron2's evaluators and visualizer expect it.

    `stuff_classes` lists all classes, so that its index is the contiguous id. Where things and
    stuff are mixed (semantic, panoptic), so does `thing_classes`, with "" in place of stuff.

    Args:
        paths: of the split.
        task: "semantic", "panoptic" or "instance".
    """
    is_instance = task == "instance"
    order = _THINGS_FIRST if is_instance else range(len(CLASS_NAMES))
    names = [CLASS_NAMES[i] for i in order]
    colors = distinct_colors(len(CLASS_NAMES))
    colors = [colors[i] for i in order]
    synonyms = [list(CLASS_SYNONYMS[i]) for i in order]
    num_things = len(THING_IDS)
    metadata: dict[str, Any] = {
        **TASKS[task].metadata,
        "stuff_classes": names,
        "stuff_colors": colors,
        "stuff_dataset_id_to_contiguous_id": {i: index for index, i in enumerate(order)},
        "thing_classes": [CLASS_NAMES[i] if i in THING_IDS else "" for i in order],
        "thing_colors": colors,
        "thing_dataset_id_to_contiguous_id": {
            i: index for index, i in enumerate(order) if i in THING_IDS
        },
        "class_synonyms": synonyms,
        "ignore_label": IGNORE_LABEL,
        "label_divisor": 1000,
        "image_root": str(paths.image_root),
        "sem_seg_root": str(paths.sem_seg_root),
        "panoptic_json": str(paths.panoptic_json),
        "panoptic_root": str(paths.panoptic_root),
    }
    if is_instance:
        for key in ("thing_classes", "thing_colors", "class_synonyms"):
            metadata[key] = metadata[key][:num_things]
        metadata["json_file"] = str(paths.instance_json)
    return metadata


def register_ade20k(root: str | Path) -> None:
    """Registers ade20k_{sem_seg,panoptic,instance}_{train,val}; detectron2's own are replaced.

    Nothing is read: files are opened when a dataset is first asked for.

    Args:
        root: the datasets folder, the parent of `ADEChallengeData2016`; `~` is expanded.
    """
    how_to_get = (
        f"Run `python datasets/download.py ade20k --root {root}`, or unpack the two archives that "
        "`python datasets/prepare_ade20k.py --help` names; then run "
        f"`python datasets/prepare_ade20k.py --root {root}`."
    )
    for split in SPLIT_FOLDERS:
        paths = Ade20kPaths(root, split)
        panoptic = (paths.image_root, paths.panoptic_json, paths.panoptic_root)
        own_files = {"semantic": paths.sem_seg_root, "instance": paths.instance_json}
        for task in NAME_PARTS:
            files = [*panoptic, *([own_files[task]] if task in own_files else [])]
            register(
                DatasetEntry(
                    name=dataset_name(task, split),
                    load=functools.partial(LOADERS[task], paths),
                    metadata=ade20k_metadata(paths, task),
                    files=tuple(files),
                    how_to_get=how_to_get,
                    num_images=NUM_IMAGES[split],
                )
            )
