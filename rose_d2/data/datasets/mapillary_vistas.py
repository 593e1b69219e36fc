"""Mapillary Vistas 1.2 and 2.0 as detectron2 datasets, semantic and panoptic.

For semantic training every thing instance is a target of its own, so both tasks read the panoptic
files. The panoptic files count the evaluated classes from 1, the label images all labels from 0.
`datasets/prepare_mapillary_vistas.py` makes what a download lacks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from rose_d2.data.datasets.coco import load_coco_panoptic
from rose_d2.data.datasets.registration import DatasetEntry, register
from rose_d2.prompts.tasks import TASKS
from rose_d2.vocabulary.names import CleanNames, clean_class_names

NUM_IMAGES = {"train": 18000, "val": 2000}
SPLIT_FOLDERS = {"train": "training", "val": "validation"}
VOID = 255


class VistasLabel(NamedTuple):
    """One label of the dataset's config file.

    Attributes:
        name: the readable name.
        color: RGB, 0 to 255.
        kind: "thing", "stuff" or "void".
    """

    name: str
    color: tuple[int, int, int]
    kind: str


def _read_labels() -> dict[str, tuple[VistasLabel, ...]]:
    """Number of a version -> all its labels in the order of their values."""
    file = resources.files("rose_d2.data.datasets") / "mapillary_vistas.yaml"
    # Read at import, so by libyaml where it is there.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tables = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
    return {
        number: tuple(VistasLabel(name, tuple(color), kind) for name, color, kind in rows)
        for number, rows in tables.items()
    }


_LABELS = _read_labels()


@dataclass(frozen=True)
class VistasVersion:
    """What differs between the versions of the dataset.

    Attributes:
        number: as in the names of folders and config files, "v1.2" or "v2.0".
        prefix: of the registered names.
        labels: all labels in the order of their values.
        panoptic_file: name of the panoptic JSON.
        label_folder: name of the folder with label images that evaluation reads.
        ignore_label: value of unlabelled pixels in these images.
    """

    number: str
    prefix: str
    labels: tuple[VistasLabel, ...]
    panoptic_file: str
    label_folder: str
    ignore_label: int

    @property
    def classes(self) -> list[VistasLabel]:
        """The evaluated labels; a class's place in this list is its contiguous id."""
        return [label for label in self.labels if label.kind != "void"]

    def clean_names(self) -> CleanNames:
        """Names of the classes for the model."""
        return clean_class_names([label.name for label in self.classes], "mapillary_vistas")

    def panoptic_ids(self, kind: str) -> dict[int, int]:
        """Category id in the panoptic JSON -> contiguous class, of "thing" or "stuff"."""
        return {k + 1: k for k, label in enumerate(self.classes) if label.kind == kind}

    def class_of_label(self) -> np.ndarray:
        """uint8 (number of labels,): the class of each label; `VOID` for void labels."""
        is_void = np.array([label.kind == "void" for label in self.labels])
        return np.where(is_void, VOID, np.cumsum(~is_void) - 1).astype(np.uint8)


V1_2 = VistasVersion(
    "v1.2", "mapillary_vistas", _LABELS["v1.2"], "panoptic_2018.json", "labels", ignore_label=65
)


# Its void labels lie among the others, so its label images cannot be evaluated as they are.
V2_0 = VistasVersion(
    "v2.0",
    "mapillary_vistas_v2",
    _LABELS["v2.0"],
    "panoptic_2020.json",
    "labels_detectron2",
    ignore_label=VOID,
)


VERSIONS = {version.number: version for version in (V1_2, V2_0)}


class VistasPaths:
    """Where the files of one split of one version lie.

    Downloads of 2.0 hold both versions, in folders of their own; those of 1.2 have no such
    folder. Which one is there is looked up when this is made.

    Args:
        root: the datasets folder, the parent of `mapillary_vistas`.
        version: of the annotations.
        split: "train" or "val".
    """

    def __init__(self, root: str | Path, version: VistasVersion, split: str) -> None:
        folder = Path(root) / "mapillary_vistas" / SPLIT_FOLDERS[split]
        annotations = folder / version.number
        if version is V1_2 and not annotations.is_dir():
            annotations = folder
        self.image_root = folder / "images"
        self.instance_root = annotations / "instances"
        self.official_label_root = annotations / "labels"
        self.label_root = annotations / version.label_folder
        self.panoptic_root = annotations / "panoptic"
        self.panoptic_json = self.panoptic_root / version.panoptic_file


def how_to_get(version: VistasVersion) -> str:
    """What a user has to do for the files of a version."""
    return (
        "Mapillary Vistas needs a free registration at https://www.mapillary.com/dataset/vistas; "
        "unpack it into mapillary_vistas/ as datasets/README.md draws it, then run `python "
        f"datasets/prepare_mapillary_vistas.py --version {version.number}`."
    )


def _load_panoptic(version: VistasVersion, paths: VistasPaths) -> list[dict[str, Any]]:
    _check_categories(version, paths.panoptic_json)
    return load_coco_panoptic(
        paths.panoptic_json,
        paths.image_root,
        paths.panoptic_root,
        version.panoptic_ids("thing"),
        version.panoptic_ids("stuff"),
    )


def _check_categories(version: VistasVersion, json_file: Path) -> None:
    """Stops where a file counts its classes in another way, which nothing else would reveal."""
    with open(json_file, encoding="utf-8") as file:
        categories = json.load(file)["categories"]
    names = {category["id"]: category["name"] for category in categories}
    for class_id, expected in enumerate(version.clean_names().names):
        name = names.get(class_id + 1, "")
        if not name or clean_class_names([name], "mapillary_vistas").names[0] != expected:
            raise ValueError(
                f"{json_file}: category {class_id + 1} is {name!r}, but in Mapillary Vistas "
                f"{version.number} it is {expected!r}. The file is of another version: put the "
                "right one there, or remove its folder and run `python "
                f"datasets/prepare_mapillary_vistas.py --version {version.number}`."
            )


def _load_semantic(version: VistasVersion, paths: VistasPaths) -> list[dict[str, Any]]:
    records = _load_panoptic(version, paths)
    for record in records:
        label_file = paths.label_root / f"{Path(record['file_name']).stem}.png"
        record["sem_seg_file_name"] = str(label_file)
    return records


def _metadata(version: VistasVersion, paths: VistasPaths) -> dict[str, Any]:
    names, synonyms = version.clean_names()
    colors = [list(label.color) for label in version.classes]
    thing_ids = version.panoptic_ids("thing")
    return {
        # Things and stuff alternate in this dataset, and detectron2's Visualizer looks up either
        # by contiguous id.
        "thing_classes": [names[k] if k in thing_ids.values() else "" for k in range(len(names))],
        "thing_colors": colors,
        "thing_dataset_id_to_contiguous_id": thing_ids,
        "stuff_classes": names,
        "stuff_colors": list(colors),
        "stuff_dataset_id_to_contiguous_id": thing_ids | version.panoptic_ids("stuff"),
        "class_synonyms": synonyms,
        "ignore_label": version.ignore_label,
        "label_divisor": 1000,
        "image_root": str(paths.image_root),
        "sem_seg_root": str(paths.label_root),
        "panoptic_json": str(paths.panoptic_json),
        "panoptic_root": str(paths.panoptic_root),
    }


def register_mapillary_vistas(root: str | Path) -> None:
    """Registers mapillary_vistas{,_v2}_{sem_seg,panoptic}_{train,val}; no file is opened.

    Args:
        root: the datasets folder, the parent of `mapillary_vistas`; `~` is expanded.
    """
    for version in VERSIONS.values():
        for split in NUM_IMAGES:
            paths = VistasPaths(Path(root).expanduser(), version, split)
            for entry in _entries(version, split, paths):
                register(entry)


def _entries(version: VistasVersion, split: str, paths: VistasPaths) -> list[DatasetEntry]:
    metadata = _metadata(version, paths)
    panoptic_files = (paths.image_root, paths.panoptic_json, paths.panoptic_root)
    return [
        DatasetEntry(
            name=f"{version.prefix}_sem_seg_{split}",
            load=lambda: _load_semantic(version, paths),
            metadata=metadata | TASKS["semantic"].metadata,
            files=(*panoptic_files[:1], paths.label_root, *panoptic_files[1:]),
            how_to_get=how_to_get(version),
            num_images=NUM_IMAGES[split],
        ),
        DatasetEntry(
            name=f"{version.prefix}_panoptic_{split}",
            load=lambda: _load_panoptic(version, paths),
            metadata=metadata | TASKS["panoptic"].metadata,
            files=panoptic_files,
            how_to_get=how_to_get(version),
            num_images=NUM_IMAGES[split],
        ),
    ]
