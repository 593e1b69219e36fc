"""The clip-art benchmark as detectron2 datasets: metadata, loaders and registration."""

import colorsys
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from rose_d2.data.clipart.categories import (
    ALL_NAMES,
    CATEGORY_IDS,
    HELD_OUT_NAMES,
    STUFF_NAMES,
    THING_NAMES,
)
from rose_d2.data.datasets.panoptic import load_coco_panoptic
from rose_d2.data.datasets.refcoco import load_refer

SPLITS = ("train", "val", "val_unseen")
EVALUATOR_TYPES = {
    "instance": "coco",
    "semantic": "sem_seg",
    "panoptic": "coco_panoptic_seg",
    "referring": "refcoco",
}
NAME_PARTS = {
    "instance": "instance",
    "semantic": "sem_seg",
    "panoptic": "panoptic",
    "referring": "refer",
}
THING_IDS = {CATEGORY_IDS[name]: index for index, name in enumerate(THING_NAMES)}
ALL_IDS = {CATEGORY_IDS[name]: index for index, name in enumerate(ALL_NAMES)}
STUFF_IDS = {CATEGORY_IDS[name]: ALL_IDS[CATEGORY_IDS[name]] for name in STUFF_NAMES}


class ClipartPaths:
    """Where the files of one split lie.

    Args:
        root: the datasets folder, the parent of `clipart`.
        split: one of `SPLITS`.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root = Path(root)
        self.folder = self.root / "clipart"
        annotations = self.folder / "annotations"
        self.image_root = self.folder / "images" / split
        self.instances_json = annotations / f"instances_{split}.json"
        self.panoptic_json = annotations / f"panoptic_{split}.json"
        self.panoptic_root = annotations / f"panoptic_{split}"
        self.sem_seg_root = self.folder / "sem_seg" / split
        self.refer_root = self.folder / "refer"

    def require(self, path: Path) -> Path:
        """Returns a path that exists.

        Raises:
            FileNotFoundError: with the command that makes the dataset.
        """
        if not path.exists():
            raise FileNotFoundError(
                f"The clip-art benchmark is not complete in {self.folder} ({path} is missing): "
                f"make it with `python datasets/prepare_clipart.py --root {self.root}`, or set "
                "DETECTRON2_DATASETS to the folder that holds clipart/ before starting Python."
            )
        return path


def _load_panoptic(paths: ClipartPaths) -> list[dict[str, Any]]:
    return load_coco_panoptic(
        paths.require(paths.panoptic_json),
        paths.image_root,
        paths.panoptic_root,
        THING_IDS,
        STUFF_IDS,
    )


def _with_segments(records: list[dict[str, Any]], paths: ClipartPaths) -> list[dict[str, Any]]:
    """Adds the panoptic annotation, so that stuff can serve as negatives of other tasks."""
    segments = {
        record["image_id"]: {key: record[key] for key in ("pan_seg_file_name", "segments_info")}
        for record in _load_panoptic(paths)
    }
    return [record | segments[record["image_id"]] for record in records]


def _load_instance(paths: ClipartPaths, split: str, name: str) -> list[dict[str, Any]]:
    json_file = paths.require(paths.instances_json)
    return _with_segments(load_coco_json(str(json_file), str(paths.image_root), name), paths)


def _load_semantic(paths: ClipartPaths, split: str, name: str) -> list[dict[str, Any]]:
    records = _load_panoptic(paths)
    for record in records:
        label_file = paths.sem_seg_root / f"{Path(record['file_name']).stem}.png"
        record["sem_seg_file_name"] = str(label_file)
    return records


def _load_panoptic_task(paths: ClipartPaths, split: str, name: str) -> list[dict[str, Any]]:
    return _load_panoptic(paths)


def _load_referring(paths: ClipartPaths, split: str, name: str) -> list[dict[str, Any]]:
    folder = paths.require(paths.refer_root)
    records = load_refer(folder, "unc", split, paths.folder / "images", THING_IDS)
    return _with_segments(records, paths)


LOADERS: dict[str, Callable[[ClipartPaths, str, str], list[dict[str, Any]]]] = {
    "instance": _load_instance,
    "semantic": _load_semantic,
    "panoptic": _load_panoptic_task,
    "referring": _load_referring,
}


def load_clipart(root: str | Path, task: str, split: str) -> list[dict[str, Any]]:
    """Loads one split of the benchmark for one task; no image is opened.

    Args:
        root: the datasets folder, the parent of `clipart`.
        task: "instance", "semantic", "panoptic" or "referring".
        split: "train", "val" or "val_unseen".

    Returns:
        detectron2 dataset dicts, each with `task` and `dataset_name`. Instance and referring
        dicts also carry `pan_seg_file_name` and `segments_info`.

    Raises:
        FileNotFoundError: if the benchmark has not been made.
        ValueError: if its files are damaged.
    """
    name = dataset_name(task, split)
    records = LOADERS[task](ClipartPaths(root, split), split, name)
    for record in records:
        record["task"] = task
        record["dataset_name"] = name
    return records


def dataset_name(task: str, split: str) -> str:
    """Registered name, e.g. "clipart_sem_seg_val" for the semantic task.

    Raises:
        ValueError: if the task or the split does not exist.
    """
    if task not in NAME_PARTS or split not in SPLITS:
        raise ValueError(
            f"No clip-art dataset for task {task!r}, split {split!r}: tasks are "
            f"{', '.join(NAME_PARTS)}; splits are {', '.join(SPLITS)}."
        )
    return f"clipart_{NAME_PARTS[task]}_{split}"


def _colors() -> list[list[int]]:
    """One RGB color per class; neighbours in the list differ by the golden angle in hue."""
    hues = [index * 0.618034 % 1 for index in range(len(ALL_NAMES))]
    return [[round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.7, 0.95)] for hue in hues]


def clipart_metadata(root: str | Path, task: str, split: str) -> dict[str, Any]:
    """Metadata of one dataset, as detectron2's evaluators and visualizer expect it.

    Where stuff takes part (semantic, panoptic), `stuff_classes` lists all classes, so that its
    index is the contiguous id. `unseen_classes` are the names that training never shows.
    """
    paths = ClipartPaths(root, split)
    colors = _colors()
    metadata: dict[str, Any] = {
        "evaluator_type": EVALUATOR_TYPES[task],
        "task": task,
        "thing_classes": list(THING_NAMES),
        "thing_colors": colors[: len(THING_NAMES)],
        "thing_dataset_id_to_contiguous_id": dict(THING_IDS),
        "stuff_classes": list(ALL_NAMES),
        "stuff_colors": colors,
        "stuff_dataset_id_to_contiguous_id": dict(ALL_IDS),
        "unseen_classes": list(HELD_OUT_NAMES),
        "ignore_label": 255,
        "label_divisor": 1000,
        "image_root": str(paths.image_root),
        "panoptic_json": str(paths.panoptic_json),
        "panoptic_root": str(paths.panoptic_root),
        "sem_seg_root": str(paths.sem_seg_root),
    }
    if task == "instance":
        metadata["json_file"] = str(paths.instances_json)
    return metadata


def register_clipart(root: str | Path) -> None:
    """Registers the twelve clip-art datasets; a name that is there already is replaced.

    Nothing is read: files are opened when a dataset is first asked for.

    Args:
        root: the datasets folder, the parent of `clipart`; `~` is expanded.
    """
    root = os.path.expanduser(root)
    for task in NAME_PARTS:
        for split in SPLITS:
            name = dataset_name(task, split)
            if name in DatasetCatalog.list():
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
            DatasetCatalog.register(
                name, lambda task=task, split=split: load_clipart(root, task, split)
            )
            MetadataCatalog.get(name).set(**clipart_metadata(root, task, split))
