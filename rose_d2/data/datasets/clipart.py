"""The clip-art benchmark as detectron2 datasets: metadata, loaders and registration."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rose_d2.data.datasets.coco import load_coco_instances, load_coco_panoptic
from rose_d2.data.datasets.refer_files import expression_kind, load_refer
from rose_d2.data.datasets.registration import DatasetEntry, distinct_colors, register
from rose_d2.prompts.tasks import TASKS

PLAIN_GLYPHS: dict[str, str] = {
    "dog": "\U0001f415",
    "cat": "\U0001f431",
    "horse": "\U0001f40e",
    "cow": "\U0001f404",
    "pig": "\U0001f416",
    "sheep": "\U0001f411",
    "elephant": "\U0001f418",
    "rabbit": "\U0001f407",
    "rooster": "\U0001f413",
    "penguin": "\U0001f427",
    "fish": "\U0001f41f",
    "octopus": "\U0001f419",
    "crab": "\U0001f980",
    "turtle": "\U0001f422",
    "frog": "\U0001f438",
    "butterfly": "\U0001f98b",
    "snail": "\U0001f40c",
    "panda": "\U0001f43c",
    "fox": "\U0001f98a",
    "giraffe": "\U0001f992",
    "ladybug": "\U0001f41e",
    "flamingo": "\U0001f9a9",
    "apple": "\U0001f34e",
    "banana": "\U0001f34c",
    "pineapple": "\U0001f34d",
    "carrot": "\U0001f955",
    "grapes": "\U0001f347",
    "watermelon": "\U0001f349",
    "mushroom": "\U0001f344",
    "pizza": "\U0001f355",
    "hamburger": "\U0001f354",
    "donut": "\U0001f369",
    "cake": "\U0001f382",
    "tree": "\U0001f333",
    "palm tree": "\U0001f334",
    "cactus": "\U0001f335",
    "sunflower": "\U0001f33b",
    "train": "\U0001f682",
    "bicycle": "\U0001f6b2",
    "airplane": "✈",
    "ambulance": "\U0001f691",
    "helicopter": "\U0001f681",
    "rocket": "\U0001f680",
    "tractor": "\U0001f69c",
    "clock": "⏰",
    "key": "\U0001f511",
    "guitar": "\U0001f3b8",
    "camera": "\U0001f4f7",
    "telephone": "☎",
    "snowman": "⛄",
    "robot": "\U0001f916",
    "soccer ball": "⚽",
    "castle": "\U0001f3f0",
    "traffic light": "\U0001f6a6",
}
"""Objects that keep the font's own colors: name -> code point."""
COLORABLE_GLYPHS: dict[str, str] = {
    "car": "\U0001f697",
    "balloon": "\U0001f388",
    "shirt": "\U0001f455",
    "umbrella": "☂",
    "cap": "\U0001f9e2",
    "book": "\U0001f4d5",
    "backpack": "\U0001f392",
    "chair": "\U0001fa91",
}
"""Objects that are always painted in, and named with, one of `COLORS`: name -> code point."""
NEW_GLYPHS: dict[str, str] = {
    "owl": "\U0001f989",
    "whale": "\U0001f433",
    "strawberry": "\U0001f353",
    "lemon": "\U0001f34b",
    "bus": "\U0001f68c",
    "crown": "\U0001f451",
    "scissors": "✂",
    "hedgehog": "\U0001f994",
}
"""Objects of no benchmark split, for fine-tuning on what a model does not know."""
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.0, 0.85, 0.88),
    "orange": (28.0, 0.92, 0.98),
    "yellow": (54.0, 0.85, 0.98),
    "green": (125.0, 0.65, 0.65),
    "blue": (217.0, 0.78, 0.90),
    "purple": (280.0, 0.60, 0.70),
}
"""Color name -> hue in degrees, saturation and value in [0, 1]."""
STUFF_NAMES: tuple[str, ...] = ("sky", "grass", "sand", "water", "road", "wall", "snow", "floor")
HELD_OUT_NAMES: tuple[str, ...] = (
    "blue car",
    "green balloon",
    "purple shirt",
    "yellow umbrella",
    "red cap",
    "orange book",
    "blue backpack",
    "green chair",
)
"""Combinations that appear only in val_unseen; training shows each object and each color apart."""
SPLITS = ("train", "val", "val_unseen")
# What prepare_clipart.py draws unless told otherwise.
NUM_SCENES = {"train": 20_000, "val": 500, "val_unseen": 300}
NAME_PARTS = {
    "instance": "instance",
    "semantic": "sem_seg",
    "panoptic": "panoptic",
    "referring": "refer",
}
# Expressions that no patch can answer without a look at the other objects.
COMPARISON_KINDS = ("position", "size")
COMPARISON_NAME = "clipart_refer_comparison_train"


@dataclass(frozen=True)
class ThingCategory:
    """One name that a thing can carry.

    Attributes:
        name: the full name, e.g. "dog" or "red car".
        object_name: the name without the color, e.g. "car".
        glyph: the character that draws it.
        color: key of `COLORS`, or None for a plain object.
    """

    name: str
    object_name: str
    glyph: str
    color: str | None


def _list_things() -> tuple[ThingCategory, ...]:
    plain = [ThingCategory(name, name, glyph, None) for name, glyph in PLAIN_GLYPHS.items()]
    colored = [
        ThingCategory(f"{color} {name}", name, glyph, color)
        for name, glyph in COLORABLE_GLYPHS.items()
        for color in COLORS
    ]
    return tuple(plain + colored)


THINGS: tuple[ThingCategory, ...] = _list_things()


THING_NAMES: tuple[str, ...] = tuple(thing.name for thing in THINGS)


NEW_THINGS = tuple(ThingCategory(name, name, glyph, None) for name, glyph in NEW_GLYPHS.items())
THING_BY_NAME: dict[str, ThingCategory] = {thing.name: thing for thing in (*THINGS, *NEW_THINGS)}


ALL_NAMES: tuple[str, ...] = THING_NAMES + STUFF_NAMES


CATEGORY_IDS: dict[str, int] = {name: index + 1 for index, name in enumerate(ALL_NAMES)}
"""Name -> id in the annotation files: things 1..T, stuff T+1..T+F."""


def coco_categories(*, with_stuff: bool) -> list[dict]:
    """The `categories` list of a COCO annotation file.

    Args:
        with_stuff: True for the panoptic layout (adds stuff, `isthing` and `color`).

    Returns:
        One dict per category, in the order of its id.
    """
    if not with_stuff:
        return [
            {"id": CATEGORY_IDS[thing.name], "name": thing.name, "supercategory": thing.object_name}
            for thing in THINGS
        ]
    supercategories = {thing.name: thing.object_name for thing in THINGS}
    return [
        {
            "id": CATEGORY_IDS[name],
            "name": name,
            "supercategory": supercategories.get(name, "stuff"),
            "isthing": int(name in supercategories),
            "color": color,
        }
        for name, color in zip(ALL_NAMES, distinct_colors(len(ALL_NAMES)), strict=True)
    ]


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
    records = load_coco_instances(paths.instances_json, paths.image_root, THING_IDS)
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
        **TASKS[task].metadata,
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
