"""Your own data in one call: COCO annotations, or images with label PNGs and a list of classes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from PIL import ExifTags, Image

from rose_d2.data.datasets.coco import load_coco_instances
from rose_d2.data.datasets.registration import (
    BrokenAnnotations,
    DatasetEntry,
    distinct_colors,
    register,
)
from rose_d2.data.mixture import train_only_on
from rose_d2.prompts.tasks import TASKS

IGNORE_LABEL = 255
STUFF_MARK = "stuff"
_CHECK_PATHS = "Check the paths you gave for it."
CUSTOM_NAME = "custom"


def register_custom(declarations: Sequence[Sequence[str]]) -> None:
    """Register the datasets of DATASETS.CUSTOM.

    Args:
        declarations: each (name, "coco", image folder, annotation JSON) or
            (name, "labels", image folder, folder of label PNGs, file with the classes).

    Raises:
        ValueError: a declaration has another form, or its files are not what they should be.
        FileNotFoundError: one of its files does not exist.
    """
    for declaration in declarations:
        match tuple(declaration):
            case (name, "coco", image_root, json_file):
                register_custom_coco(name, image_root, json_file)
            case (name, "labels", image_root, label_root, classes_file):
                register_custom_labels(name, image_root, label_root, classes_file)
            case _:
                raise ValueError(
                    f"DATASETS.CUSTOM has the entry {declaration!r}; write (name, 'coco', image "
                    "folder, annotation JSON) or (name, 'labels', image folder, folder of label "
                    "PNGs, file with one class name per line)."
                )


def register_custom_coco(name: str, image_root: str | Path, json_file: str | Path) -> None:
    """Register images with COCO instance annotations, for training, evaluation and the demo.

    Args:
        name: to use in DATASETS.TRAIN and TEST.
        image_root: folder that the images' `file_name` is relative to.
        json_file: with `images`, `annotations` (polygons or RLE) and `categories`.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the file is no COCO annotation file.
    """
    image_root, json_file = Path(image_root).expanduser(), Path(json_file).expanduser()
    _require(name, image_root, json_file)
    categories = _sorted_categories(json_file)
    classes = _class_names(categories, json_file)
    ids = {category["id"]: index for index, category in enumerate(categories)}
    metadata = {
        **TASKS["instance"].metadata,
        "json_file": str(json_file),
        "image_root": str(image_root),
        "thing_classes": classes,
        "thing_colors": distinct_colors(len(classes)),
        "thing_dataset_id_to_contiguous_id": ids,
    }
    register(
        DatasetEntry(
            name=name,
            load=lambda: load_coco_instances(json_file, image_root, ids),
            metadata=metadata,
            files=(image_root, json_file),
            how_to_get=_CHECK_PATHS,
        )
    )


def register_custom_labels(
    name: str, image_root: str | Path, label_root: str | Path, classes_file: str | Path
) -> None:
    """Register images with one label PNG each, for training, evaluation and the demo.

    Args:
        name: to use in DATASETS.TRAIN and TEST.
        image_root: folder of the images.
        label_root: folder of the label PNGs, 8-bit grey or palette, named like their images;
            the value of a pixel is the line number of its class, from 0; 255 is unlabelled.
        classes_file: text file with one class name per line; a line that ends in ": stuff" is
            background without a shape of its own ("sky: stuff").

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the list of classes is empty, too long, or has a name twice.
    """
    image_root, label_root = Path(image_root).expanduser(), Path(label_root).expanduser()
    classes_file = Path(classes_file).expanduser()
    _require(name, image_root, label_root, classes_file)
    marked = _read_classes(classes_file)
    classes = [name for name, _ in marked]
    metadata = {
        **TASKS["semantic"].metadata,
        "image_root": str(image_root),
        "sem_seg_root": str(label_root),
        "ignore_label": IGNORE_LABEL,
        "stuff_classes": classes,
        "stuff_colors": distinct_colors(len(classes)),
        "stuff_dataset_id_to_contiguous_id": {i: i for i in range(len(classes))},
        "thing_classes": [name for name, is_stuff in marked if not is_stuff],
    }
    register(
        DatasetEntry(
            name=name,
            load=lambda: load_labelled_images(image_root, label_root),
            metadata=metadata,
            files=(image_root, label_root, classes_file),
            how_to_get=_CHECK_PATHS,
        )
    )


def read_class_names(path: str | Path) -> list[str]:
    """Read the class names of a dataset.

    Args:
        path: COCO annotation JSON, or text as for `register_custom_labels`.

    Returns:
        The names in the order of the classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no names, or one twice.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r} to read class names from.")
    if path.suffix.lower() == ".json":
        return _class_names(_sorted_categories(path), path)
    return [name for name, _ in _read_classes(path)]


def load_labelled_images(image_root: Path, label_root: Path) -> list[dict[str, Any]]:
    """Pair images with label PNGs of the same name; only headers are read.

    Args:
        image_root: folder of the images.
        label_root: folder of the PNGs.

    Returns:
        One dict per image that has labels, by name; images without are counted and left out.

    Raises:
        ValueError: no image has labels.
    """
    known = Image.registered_extensions()
    broken = BrokenAnnotations(label_root)
    records = []
    for path in sorted(p for p in image_root.iterdir() if p.suffix.lower() in known):
        label_file = label_root / f"{path.stem}.png"
        if not label_file.exists():
            broken.add("images without a label PNG", path.name)
            continue
        try:
            width, height = _displayed_size(path)
        except OSError:
            broken.add("images that cannot be read", path.name)
            continue
        records.append(
            {
                "file_name": str(path),
                "image_id": path.stem,
                "height": height,
                "width": width,
                "sem_seg_file_name": str(label_file),
            }
        )
    broken.report()
    if not records:
        raise ValueError(
            f"No image of {image_root} has a label PNG of its name in {label_root}; for "
            "street.jpg a file street.png is needed there."
        )
    return records


def _displayed_size(path: Path) -> tuple[int, int]:
    """Width and height once the camera's rotation is applied, as when the image is read."""
    with Image.open(path) as image:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return image.size[::-1] if is_turned else image.size


def _require(name: str, *paths: Path) -> None:
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"The custom dataset {name!r} needs {path}, which is missing.")


def _read_classes(path: Path) -> list[tuple[str, bool]]:
    """Names and whether they are stuff, from "sky: stuff" or "car", one a line."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    parts = [line.partition(":") for line in lines]
    names = _checked_names([name.strip() for name, _, _ in parts], path)
    marks = [mark.strip().lower() == STUFF_MARK for _, _, mark in parts]
    return list(zip(names, marks, strict=True))


def _sorted_categories(json_file: Path) -> list[dict[str, Any]]:
    return sorted(_read_coco(json_file)["categories"], key=lambda category: category["id"])


def _class_names(categories: list[dict[str, Any]], source: Path) -> list[str]:
    return _checked_names([str(category["name"]) for category in categories], source)


def _read_coco(json_file: Path) -> dict[str, Any]:
    try:
        content = json.loads(json_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{json_file} is not valid JSON ({error}).") from error
    needed = ("images", "annotations", "categories")
    missing = [key for key in needed if key not in content] if isinstance(content, dict) else needed
    if missing:
        raise ValueError(
            f"{json_file} lacks {', '.join(missing)}; a COCO instance annotation file has a dict "
            f"with {', '.join(needed)}."
        )
    return content


def _checked_names(names: list[str], source: Path) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice or not all(names) or len(names) > IGNORE_LABEL:
        wrong = f"the name {twice[0]!r} twice" if twice else f"{len(names)} classes"
        raise ValueError(
            f"{source} has {wrong}; give 1 to {IGNORE_LABEL} different, non-empty names, as a "
            "person would say them, since they are what the model learns to say."
        )
    return names


def add_custom_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--custom-coco` and `--custom-labels`.

    Args:
        parser: of a command that trains, evaluates or segments.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--custom-coco",
        nargs=2,
        metavar=("IMAGES", "JSON"),
        help="use this folder of images with COCO instance annotations instead of the config's "
        "datasets",
    )
    group.add_argument(
        "--custom-labels",
        nargs=3,
        metavar=("IMAGES", "LABELS", "CLASSES"),
        help="use this folder of images with label PNGs of the same names, whose values are line "
        "numbers, from 0, of the text file CLASSES (a line 'sky: stuff' marks background; the "
        "value 255 is unlabelled)",
    )


def use_custom_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Register DATASETS.CUSTOM, and let data of the command line replace the config's datasets.

    Args:
        cfg: not frozen; DATASETS is changed where the command line names data.
        args: may have the options of `add_custom_data_arguments`.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the data are not what they should be.
    """
    declared = None
    if getattr(args, "custom_coco", None):
        declared = (CUSTOM_NAME, "coco", *args.custom_coco)
    elif getattr(args, "custom_labels", None):
        declared = (CUSTOM_NAME, "labels", *args.custom_labels)
    if declared:
        cfg.DATASETS.CUSTOM = (*cfg.DATASETS.CUSTOM, declared)
        train_only_on(cfg, [CUSTOM_NAME])
        cfg.DATASETS.TEST = (CUSTOM_NAME,)
    register_custom(cfg.DATASETS.CUSTOM)
