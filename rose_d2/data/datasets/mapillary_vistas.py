"""Mapillary Vistas 1.2 and 2.0 as detectron2 datasets, semantic and panoptic.

For semantic training every thing instance is a target of its own, so both tasks read the panoptic
files. The panoptic files count the evaluated classes from 1, the label images all labels from 0.
`datasets/prepare_mapillary_vistas.py` makes what a download lacks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rose_d2.data.datasets.coco import load_coco_panoptic
from rose_d2.data.datasets.registration import DatasetEntry, register
from rose_d2.vocabulary.names import CleanNames, clean_class_names

_V1_2 = [
    ("Bird", (165, 42, 42), "thing"),
    ("Ground Animal", (0, 192, 0), "thing"),
    ("Curb", (196, 196, 196), "stuff"),
    ("Fence", (190, 153, 153), "stuff"),
    ("Guard Rail", (180, 165, 180), "stuff"),
    ("Barrier", (90, 120, 150), "stuff"),
    ("Wall", (102, 102, 156), "stuff"),
    ("Bike Lane", (128, 64, 255), "stuff"),
    ("Crosswalk - Plain", (140, 140, 200), "thing"),
    ("Curb Cut", (170, 170, 170), "stuff"),
    ("Parking", (250, 170, 160), "stuff"),
    ("Pedestrian Area", (96, 96, 96), "stuff"),
    ("Rail Track", (230, 150, 140), "stuff"),
    ("Road", (128, 64, 128), "stuff"),
    ("Service Lane", (110, 110, 110), "stuff"),
    ("Sidewalk", (244, 35, 232), "stuff"),
    ("Bridge", (150, 100, 100), "stuff"),
    ("Building", (70, 70, 70), "stuff"),
    ("Tunnel", (150, 120, 90), "stuff"),
    ("Person", (220, 20, 60), "thing"),
    ("Bicyclist", (255, 0, 0), "thing"),
    ("Motorcyclist", (255, 0, 100), "thing"),
    ("Other Rider", (255, 0, 200), "thing"),
    ("Lane Marking - Crosswalk", (200, 128, 128), "thing"),
    ("Lane Marking - General", (255, 255, 255), "stuff"),
    ("Mountain", (64, 170, 64), "stuff"),
    ("Sand", (230, 160, 50), "stuff"),
    ("Sky", (70, 130, 180), "stuff"),
    ("Snow", (190, 255, 255), "stuff"),
    ("Terrain", (152, 251, 152), "stuff"),
    ("Vegetation", (107, 142, 35), "stuff"),
    ("Water", (0, 170, 30), "stuff"),
    ("Banner", (255, 255, 128), "thing"),
    ("Bench", (250, 0, 30), "thing"),
    ("Bike Rack", (100, 140, 180), "thing"),
    ("Billboard", (220, 220, 220), "thing"),
    ("Catch Basin", (220, 128, 128), "thing"),
    ("CCTV Camera", (222, 40, 40), "thing"),
    ("Fire Hydrant", (100, 170, 30), "thing"),
    ("Junction Box", (40, 40, 40), "thing"),
    ("Mailbox", (33, 33, 33), "thing"),
    ("Manhole", (100, 128, 160), "thing"),
    ("Phone Booth", (142, 0, 0), "thing"),
    ("Pothole", (70, 100, 150), "stuff"),
    ("Street Light", (210, 170, 100), "thing"),
    ("Pole", (153, 153, 153), "thing"),
    ("Traffic Sign Frame", (128, 128, 128), "thing"),
    ("Utility Pole", (0, 0, 80), "thing"),
    ("Traffic Light", (250, 170, 30), "thing"),
    ("Traffic Sign (Back)", (192, 192, 192), "thing"),
    ("Traffic Sign (Front)", (220, 220, 0), "thing"),
    ("Trash Can", (140, 140, 20), "thing"),
    ("Bicycle", (119, 11, 32), "thing"),
    ("Boat", (150, 0, 255), "thing"),
    ("Bus", (0, 60, 100), "thing"),
    ("Car", (0, 0, 142), "thing"),
    ("Caravan", (0, 0, 90), "thing"),
    ("Motorcycle", (0, 0, 230), "thing"),
    ("On Rails", (0, 80, 100), "stuff"),
    ("Other Vehicle", (128, 64, 64), "thing"),
    ("Trailer", (0, 0, 110), "thing"),
    ("Truck", (0, 0, 70), "thing"),
    ("Wheeled Slow", (0, 0, 192), "thing"),
    ("Car Mount", (32, 32, 32), "stuff"),
    ("Ego Vehicle", (120, 10, 10), "stuff"),
    ("Unlabeled", (0, 0, 0), "void"),
]
_V2_0 = [
    ("Bird", (165, 42, 42), "thing"),
    ("Ground Animal", (0, 192, 0), "thing"),
    ("Ambiguous Barrier", (250, 170, 31), "void"),
    ("Concrete Block", (250, 170, 32), "stuff"),
    ("Curb", (196, 196, 196), "stuff"),
    ("Fence", (190, 153, 153), "stuff"),
    ("Guard Rail", (180, 165, 180), "stuff"),
    ("Barrier", (90, 120, 150), "stuff"),
    ("Road Median", (250, 170, 33), "stuff"),
    ("Road Side", (250, 170, 34), "stuff"),
    ("Lane Separator", (128, 128, 128), "stuff"),
    ("Temporary Barrier", (250, 170, 35), "thing"),
    ("Wall", (102, 102, 156), "stuff"),
    ("Bike Lane", (128, 64, 255), "stuff"),
    ("Crosswalk - Plain", (140, 140, 200), "thing"),
    ("Curb Cut", (170, 170, 170), "stuff"),
    ("Driveway", (250, 170, 36), "thing"),
    ("Parking", (250, 170, 160), "stuff"),
    ("Parking Aisle", (250, 170, 37), "stuff"),
    ("Pedestrian Area", (96, 96, 96), "stuff"),
    ("Rail Track", (230, 150, 140), "stuff"),
    ("Road", (128, 64, 128), "stuff"),
    ("Road Shoulder", (110, 110, 110), "stuff"),
    ("Service Lane", (110, 110, 110), "stuff"),
    ("Sidewalk", (244, 35, 232), "stuff"),
    ("Traffic Island", (128, 196, 128), "stuff"),
    ("Bridge", (150, 100, 100), "stuff"),
    ("Building", (70, 70, 70), "stuff"),
    ("Garage", (150, 150, 150), "stuff"),
    ("Tunnel", (150, 120, 90), "stuff"),
    ("Person", (220, 20, 60), "thing"),
    ("Person Group", (220, 20, 60), "void"),
    ("Bicyclist", (255, 0, 0), "thing"),
    ("Motorcyclist", (255, 0, 100), "thing"),
    ("Other Rider", (255, 0, 200), "thing"),
    ("Lane Marking - Dashed Line", (255, 255, 255), "stuff"),
    ("Lane Marking - Straight Line", (255, 255, 255), "stuff"),
    ("Lane Marking - Zigzag Line", (250, 170, 29), "stuff"),
    ("Lane Marking - Ambiguous", (250, 170, 28), "void"),
    ("Lane Marking - Arrow (Left)", (250, 170, 26), "thing"),
    ("Lane Marking - Arrow (Other)", (250, 170, 25), "thing"),
    ("Lane Marking - Arrow (Right)", (250, 170, 24), "thing"),
    ("Lane Marking - Arrow (Split Left or Straight)", (250, 170, 22), "thing"),
    ("Lane Marking - Arrow (Split Right or Straight)", (250, 170, 21), "thing"),
    ("Lane Marking - Arrow (Straight)", (250, 170, 20), "thing"),
    ("Lane Marking - Crosswalk", (255, 255, 255), "thing"),
    ("Lane Marking - Give Way (Row)", (250, 170, 19), "thing"),
    ("Lane Marking - Give Way (Single)", (250, 170, 18), "thing"),
    ("Lane Marking - Hatched (Chevron)", (250, 170, 12), "stuff"),
    ("Lane Marking - Hatched (Diagonal)", (250, 170, 11), "stuff"),
    ("Lane Marking - Other", (255, 255, 255), "thing"),
    ("Lane Marking - Stop Line", (255, 255, 255), "thing"),
    ("Lane Marking - Symbol (Bicycle)", (250, 170, 16), "thing"),
    ("Lane Marking - Symbol (Other)", (250, 170, 15), "thing"),
    ("Lane Marking - Text", (250, 170, 15), "thing"),
    ("Lane Marking (only) - Dashed Line", (255, 255, 255), "stuff"),
    ("Lane Marking (only) - Crosswalk", (255, 255, 255), "stuff"),
    ("Lane Marking (only) - Other", (255, 255, 255), "stuff"),
    ("Lane Marking (only) - Test", (255, 255, 255), "stuff"),
    ("Mountain", (64, 170, 64), "stuff"),
    ("Sand", (230, 160, 50), "stuff"),
    ("Sky", (70, 130, 180), "stuff"),
    ("Snow", (190, 255, 255), "stuff"),
    ("Terrain", (152, 251, 152), "stuff"),
    ("Vegetation", (107, 142, 35), "stuff"),
    ("Water", (0, 170, 30), "stuff"),
    ("Banner", (255, 255, 128), "thing"),
    ("Bench", (250, 0, 30), "thing"),
    ("Bike Rack", (100, 140, 180), "thing"),
    ("Catch Basin", (220, 128, 128), "thing"),
    ("CCTV Camera", (222, 40, 40), "thing"),
    ("Fire Hydrant", (100, 170, 30), "thing"),
    ("Junction Box", (40, 40, 40), "thing"),
    ("Mailbox", (33, 33, 33), "thing"),
    ("Manhole", (100, 128, 160), "thing"),
    ("Parking Meter", (20, 20, 255), "thing"),
    ("Phone Booth", (142, 0, 0), "thing"),
    ("Pothole", (70, 100, 150), "stuff"),
    ("Signage - Advertisement", (250, 171, 30), "thing"),
    ("Signage - Ambiguous", (250, 172, 30), "void"),
    ("Signage - Back", (250, 173, 30), "thing"),
    ("Signage - Information", (250, 174, 30), "thing"),
    ("Signage - Other", (250, 175, 30), "thing"),
    ("Signage - Store", (250, 176, 30), "thing"),
    ("Street Light", (210, 170, 100), "thing"),
    ("Pole", (153, 153, 153), "thing"),
    ("Pole Group", (153, 153, 153), "void"),
    ("Traffic Sign Frame", (128, 128, 128), "thing"),
    ("Utility Pole", (0, 0, 80), "thing"),
    ("Traffic Cone", (210, 60, 60), "thing"),
    ("Traffic Light - General (Single)", (250, 170, 30), "thing"),
    ("Traffic Light - Pedestrians", (250, 170, 30), "thing"),
    ("Traffic Light - General (Upright)", (250, 170, 30), "thing"),
    ("Traffic Light - General (Horizontal)", (250, 170, 30), "thing"),
    ("Traffic Light - Cyclists", (250, 170, 30), "thing"),
    ("Traffic Light - Other", (250, 170, 30), "thing"),
    ("Traffic Sign - Ambiguous", (192, 192, 192), "void"),
    ("Traffic Sign (Back)", (192, 192, 192), "thing"),
    ("Traffic Sign - Direction (Back)", (192, 192, 192), "thing"),
    ("Traffic Sign - Direction (Front)", (220, 220, 0), "thing"),
    ("Traffic Sign (Front)", (220, 220, 0), "thing"),
    ("Traffic Sign - Parking", (0, 0, 196), "thing"),
    ("Traffic Sign - Temporary (Back)", (192, 192, 192), "thing"),
    ("Traffic Sign - Temporary (Front)", (220, 220, 0), "thing"),
    ("Trash Can", (140, 140, 20), "thing"),
    ("Bicycle", (119, 11, 32), "thing"),
    ("Boat", (150, 0, 255), "thing"),
    ("Bus", (0, 60, 100), "thing"),
    ("Car", (0, 0, 142), "thing"),
    ("Caravan", (0, 0, 90), "thing"),
    ("Motorcycle", (0, 0, 230), "thing"),
    ("On Rails", (0, 80, 100), "thing"),
    ("Other Vehicle", (128, 64, 64), "thing"),
    ("Trailer", (0, 0, 110), "thing"),
    ("Truck", (0, 0, 70), "thing"),
    ("Vehicle Group", (0, 0, 142), "void"),
    ("Wheeled Slow", (0, 0, 192), "thing"),
    ("Water Valve", (170, 170, 170), "thing"),
    ("Car Mount", (32, 32, 32), "stuff"),
    ("Dynamic", (111, 74, 0), "stuff"),
    ("Ego Vehicle", (120, 10, 10), "stuff"),
    ("Ground", (81, 0, 81), "stuff"),
    ("Static", (111, 111, 0), "stuff"),
    ("Unlabeled", (0, 0, 0), "void"),
]
NUM_IMAGES = {"train": 18000, "val": 2000}
SPLIT_FOLDERS = {"train": "training", "val": "validation"}
VOID = 255


class VistasLabel(NamedTuple):
    """One line of the dataset's config file.

    Attributes:
        name: the readable name.
        color: RGB, 0 to 255.
        kind: "thing", "stuff" or "void".
    """

    name: str
    color: tuple[int, int, int]
    kind: str


LABELS_V1_2: tuple[VistasLabel, ...] = tuple(VistasLabel(*row) for row in _V1_2)
"""66 labels: 37 things, 28 kinds of stuff, unlabelled."""
LABELS_V2_0: tuple[VistasLabel, ...] = tuple(VistasLabel(*row) for row in _V2_0)
"""124 labels: 70 things, 46 kinds of stuff, 8 void."""


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
    "v1.2", "mapillary_vistas", LABELS_V1_2, "panoptic_2018.json", "labels", ignore_label=65
)


# Its void labels lie among the others, so its label images cannot be evaluated as they are.
V2_0 = VistasVersion(
    "v2.0",
    "mapillary_vistas_v2",
    LABELS_V2_0,
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
            metadata=metadata | {"task": "semantic", "evaluator_type": "sem_seg"},
            files=(*panoptic_files[:1], paths.label_root, *panoptic_files[1:]),
            how_to_get=how_to_get(version),
            num_images=NUM_IMAGES[split],
        ),
        DatasetEntry(
            name=f"{version.prefix}_panoptic_{split}",
            load=lambda: _load_panoptic(version, paths),
            metadata=metadata | {"task": "panoptic", "evaluator_type": "coco_panoptic_seg"},
            files=panoptic_files,
            how_to_get=how_to_get(version),
            num_images=NUM_IMAGES[split],
        ),
    ]
