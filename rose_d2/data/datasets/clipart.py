"""The clip-art benchmark as detectron2 datasets: metadata, loaders and registration."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json

from rose_d2.data.clipart.categories import (
    ALL_NAMES,
    CATEGORY_IDS,
    HELD_OUT_NAMES,
    STUFF_NAMES,
    THING_NAMES,
)
from rose_d2.data.datasets.colors import distinct_colors
from rose_d2.data.datasets.panoptic import load_coco_panoptic
from rose_d2.data.datasets.refcoco import load_refer
from rose_d2.data.datasets.registration import DatasetEntry, register
from rose_d2.data.expression_kinds import expression_kind

SPLITS = ("train", "val", "val_unseen")
# What prepare_clipart.py draws unless told otherwise.
NUM_SCENES = {"train": 20_000, "val": 500, "val_unseen": 300}
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
# Expressions that no patch can answer without a look at the other objects.
COMPARISON_KINDS = ("position", "size")
COMPARISON_NAME = "clipart_refer_comparison_train"
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

    def needed_for(self, task: str) -> tuple[Path, ...]:
        """Files and folders the datasets of a task need."""
        files = (self.image_root, self.panoptic_json, self.panoptic_root)
        if task == "instance":
            return (*files, self.instances_json)
        if task == "semantic":
            return (*files, self.sem_seg_root)
        return (*files, self.refer_root) if task == "referring" else files


def _load_panoptic(paths: ClipartPaths) -> list[dict[str, Any]]:
    return load_coco_panoptic(
        paths.panoptic_json,
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
    records = load_coco_json(str(paths.instances_json), str(paths.image_root), name)
    return _with_segments(records, paths)


def _load_semantic(paths: ClipartPaths, split: str, name: str) -> list[dict[str, Any]]:
    records = _load_panoptic(paths)
    for record in records:
        label_file = paths.sem_seg_root / f"{Path(record['file_name']).stem}.png"
        record["sem_seg_file_name"] = str(label_file)
    return records


def _load_panoptic_task(paths: ClipartPaths, split: str, name: str) -> list[dict[str, Any]]:
    return _load_panoptic(paths)


def _load_referring(paths: ClipartPaths, split: str, name: str) -> list[dict[str, Any]]:
    records = load_refer(paths.refer_root, "unc", split, paths.folder / "images", THING_IDS)
    return _with_segments(records, paths)


LOADERS: dict[str, Callable[[ClipartPaths, str, str], list[dict[str, Any]]]] = {
    "instance": _load_instance,
    "semantic": _load_semantic,
    "panoptic": _load_panoptic_task,
    "referring": _load_referring,
}


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


def clipart_metadata(root: str | Path, task: str, split: str) -> dict[str, Any]:
    """Metadata of one dataset, as detectron2's evaluators and visualizer expect it.

    Where stuff takes part (semantic, panoptic), `stuff_classes` lists all classes, so that its
    index is the contiguous id. `unseen_classes` are the names that training never shows.
    """
    paths = ClipartPaths(root, split)
    colors = distinct_colors(len(ALL_NAMES))
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


def clipart_entry(root: str | Path, task: str, split: str) -> DatasetEntry:
    """One split of the benchmark for one task.

    Instance and referring dicts also carry `pan_seg_file_name` and `segments_info`.

    Args:
        root: the datasets folder, the parent of `clipart`.
        task: "instance", "semantic", "panoptic" or "referring".
        split: "train", "val" or "val_unseen".
    """
    name, paths = dataset_name(task, split), ClipartPaths(root, split)
    return DatasetEntry(
        name=name,
        load=lambda: LOADERS[task](paths, split, name),
        metadata=clipart_metadata(root, task, split),
        files=paths.needed_for(task),
        how_to_get=f"Make it with `python datasets/prepare_clipart.py --root {root}`.",
        num_images=NUM_SCENES[split],
    )


def comparison_entry(root: str | Path) -> DatasetEntry:
    """The training expressions by position or size alone, so that a mix can take more of them.

    Args:
        root: the datasets folder, the parent of `clipart`.
    """
    whole = clipart_entry(root, "referring", "train")

    def load() -> list[dict[str, Any]]:
        records = whole.load()
        return [r for r in records if expression_kind(r["sentence"]) in COMPARISON_KINDS]

    return replace(whole, name=COMPARISON_NAME, load=load, num_images=None)


def load_clipart(root: str | Path, task: str, split: str) -> list[dict[str, Any]]:
    """Loads one split of the benchmark for one task, see `clipart_entry`; no image is opened.

    Raises:
        FileNotFoundError: if the benchmark has not been made.
        ValueError: if its files are damaged.
    """
    return clipart_entry(root, task, split).load_dicts()


def register_clipart(root: str | Path) -> None:
    """Registers the thirteen clip-art datasets; a name that is there already is replaced.

    Nothing is read: files are opened when a dataset is first asked for.

    Args:
        root: the datasets folder, the parent of `clipart`; `~` is expanded.
    """
    root = os.path.expanduser(root)
    for task in NAME_PARTS:
        for split in SPLITS:
            register(clipart_entry(root, task, split))
    register(comparison_entry(root))
