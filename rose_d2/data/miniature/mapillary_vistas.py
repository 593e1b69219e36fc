"""Mapillary Vistas 1.2 in miniature, as downloaded: before `datasets/prepare_mapillary_vistas.py`.

The validation part has the official panoptic files, the training part has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rose_d2.data.clipart.categories import STUFF_NAMES
from rose_d2.data.clipart.scene import Scene
from rose_d2.data.datasets.mapillary_vistas import V1_2, VistasPaths
from rose_d2.data.miniature.scenes import miniature_scene
from rose_d2.data.panoptic_conversion import id_to_rgb
from rose_d2.data.preparation import dump_json

SCENE_IDS = {"train": (501, 507, 517, 523), "val": (504, 525)}
"""The clip-art scene of each picture, by split."""

PANOPTIC_SPLIT = "val"
NUMBERS_PER_LABEL = 256

_LABELS = {label.name: value for value, label in enumerate(V1_2.labels)}
_BIRDS = ("flamingo", "penguin", "rooster")
_ANIMALS = (
    *("dog", "cat", "horse", "cow", "pig", "sheep", "elephant", "rabbit", "panda", "fox"),
    *("giraffe", "crab", "turtle", "frog", "snail"),
)
_PLANTS = ("cactus", "palm tree", "sunflower", "tree")
_NAMES = {
    **dict.fromkeys(_BIRDS, "Bird"),
    **dict.fromkeys(_ANIMALS, "Ground Animal"),
    **dict.fromkeys(_PLANTS, "Vegetation"),
    "ambulance": "Other Vehicle",
    "bicycle": "Bicycle",
    "car": "Car",
    "castle": "Building",
    "chair": "Bench",
    "robot": "Person",
    "snowman": "Person",
    "tractor": "Other Vehicle",
    "traffic light": "Traffic Light",
    "train": "On Rails",
    "umbrella": "Banner",
    # Bands of stuff.
    "floor": "Pedestrian Area",
    "grass": "Terrain",
    "road": "Road",
    "sand": "Sand",
    "sky": "Sky",
    "snow": "Snow",
    "wall": "Wall",
    "water": "Water",
}


def write_mapillary_vistas(root: str | Path) -> None:
    """Write four training and two validation pictures in the layout of version 1.2.

    With the oddities of the real data: label images with a palette, 16-bit instances PNGs,
    unlabelled pixels as label 65, image ids that are no numbers.

    Args:
        root: the datasets folder, in which `mapillary_vistas` is made.
    """
    for split, scene_ids in SCENE_IDS.items():
        paths = VistasPaths(root, V1_2, split)
        for folder in (paths.image_root, paths.label_root, paths.instance_root):
            folder.mkdir(parents=True, exist_ok=True)
        for scene_id in scene_ids:
            _write_pictures(scene_id, paths)
        if split == PANOPTIC_SPLIT:
            _write_panoptic(scene_ids, paths)
    config = {"version": "1.2", "mapping": "public", "labels": _config_labels()}
    dump_json(config, Path(root) / "mapillary_vistas" / "config.json")


def image_key(scene_id: int) -> str:
    """22 characters, as the names of the real images."""
    return f"miniature-vistas_{scene_id:05d}"


def draw_instances(scene: Scene) -> np.ndarray:
    """The instances annotation of a scene.

    Returns:
        uint16 (H, W): label * 256 + number of the instance among those of its label, from 0.
    """
    stuff = np.array([_LABELS[_NAMES[name]] for name in STUFF_NAMES], dtype=np.uint16)
    values = stuff[scene.stuff] * NUMBERS_PER_LABEL
    counts: dict[int, int] = {}
    for thing in scene.objects:
        label = _LABELS[_NAMES.get(thing.object_name, "Unlabeled")]
        number = counts.get(label, 0) if V1_2.labels[label].kind == "thing" else 0
        counts[label] = number + 1
        values[thing.mask] = label * NUMBERS_PER_LABEL + number
    return values


def _write_pictures(scene_id: int, paths: VistasPaths) -> None:
    scene = miniature_scene(scene_id)
    key = image_key(scene_id)
    Image.fromarray(scene.image).save(paths.image_root / f"{key}.jpg", quality=92)
    instances = draw_instances(scene)
    Image.fromarray(instances).save(paths.instance_root / f"{key}.png")
    labels = Image.fromarray((instances // NUMBERS_PER_LABEL).astype(np.uint8))
    labels.putpalette([part for label in V1_2.labels for part in label.color])
    labels.save(paths.label_root / f"{key}.png")


def _write_panoptic(scene_ids: tuple[int, ...], paths: VistasPaths) -> None:
    paths.panoptic_root.mkdir(exist_ok=True)
    images, annotations = [], []
    for scene_id in scene_ids:
        key = image_key(scene_id)
        values = draw_instances(miniature_scene(scene_id)).astype(np.int64)
        unlabelled = values // NUMBERS_PER_LABEL == V1_2.ignore_label
        # Real ids are other numbers; 0 is void.
        segment_ids = np.where(unlabelled, 0, values + 1)
        Image.fromarray(id_to_rgb(segment_ids)).save(paths.panoptic_root / f"{key}.png")
        height, width = values.shape
        images.append({"id": key, "file_name": f"{key}.jpg", "height": height, "width": width})
        annotations.append(
            {"image_id": key, "file_name": f"{key}.png", "segments_info": _segments(segment_ids)}
        )
    categories = [
        {"id": class_id + 1, "name": label.name, "isthing": int(label.kind == "thing")}
        for class_id, label in enumerate(V1_2.classes)
    ]
    dump_json(
        {"images": images, "annotations": annotations, "categories": categories},
        paths.panoptic_json,
    )


def _segments(segment_ids: np.ndarray) -> list[dict[str, Any]]:
    segments = []
    for segment_id in np.unique(segment_ids[segment_ids > 0]).tolist():
        rows, columns = np.nonzero(segment_ids == segment_id)
        x, y = int(columns.min()), int(rows.min())
        segments.append(
            {
                "id": segment_id,
                "category_id": (segment_id - 1) // NUMBERS_PER_LABEL + 1,
                "area": len(rows),
                "bbox": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
                "iscrowd": 0,
            }
        )
    return segments


def _config_labels() -> list[dict[str, Any]]:
    return [
        {
            "readable": label.name,
            "instances": label.kind == "thing",
            "evaluate": label.kind != "void",
            "color": list(label.color),
        }
        for label in V1_2.labels
    ]
