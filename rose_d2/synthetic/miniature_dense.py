"""ADE20K and Mapillary Vistas in miniature, as they come from their sites, before preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rose_d2.data.datasets.ade20k import CLASS_NAMES, STUFF_IDS, THING_IDS, Ade20kPaths
from rose_d2.data.datasets.clipart import STUFF_NAMES
from rose_d2.data.datasets.mapillary_vistas import V1_2, VistasPaths
from rose_d2.prepare.preparation import dump_json
from rose_d2.structures.mask_codec import ids_to_colours
from rose_d2.synthetic.miniature_coco import miniature_scene
from rose_d2.synthetic.scene import Scene, SceneObject

ADE20K_SCENE_IDS = {"train": (366, 302, 303, 376, 310, 316), "val": (309, 311, 383)}
"""The clip-art scene of each picture, in order, by split."""
GREY_PICTURE = "ADE_train_00000002"
CMYK_PICTURE = "ADE_train_00000003"
# The rows at the bottom of a picture that nobody labelled.
UNLABELLED_ROWS = 4
# In the first picture of a split, the thing at the back has a class but no instance.
SPLIT_WITHOUT_INSTANCE = "train"
_ADE20K_ANIMALS = (
    *("dog", "cat", "horse", "cow", "pig", "sheep", "elephant", "rabbit", "rooster", "penguin"),
    *("fish", "octopus", "crab", "turtle", "frog", "butterfly", "snail", "panda", "fox"),
    *("giraffe", "ladybug", "flamingo"),
)
_FOODS = (
    *("apple", "banana", "pineapple", "carrot", "grapes", "watermelon", "mushroom", "pizza"),
    *("hamburger", "donut", "cake"),
)
_CLASSES = {
    **dict.fromkeys(_ADE20K_ANIMALS, "animal"),
    **dict.fromkeys(_FOODS, "food"),
    "tree": "tree",
    "palm tree": "palm tree",
    "cactus": "plant",
    "sunflower": "flower",
    "bicycle": "bicycle",
    "airplane": "plane",
    "ambulance": "van",
    "tractor": "truck",
    "clock": "clock",
    "snowman": "sculpture",
    "soccer ball": "ball",
    "castle": "building",
    "traffic light": "traffic light",
    "car": "car",
    "shirt": "clothes",
    "cap": "clothes",
    "book": "book",
    "backpack": "bag",
    "chair": "chair",
    "umbrella": "canopy",
    # Stuff; there is no class for snow.
    "sky": "sky",
    "grass": "grass",
    "sand": "sand",
    "water": "water",
    "road": "road",
    "wall": "wall",
    "floor": "floor",
    "snow": None,
}
VISTAS_SCENE_IDS = {"train": (501, 507, 517, 523), "val": (504, 525)}
"""The clip-art scene of each picture, by split."""
PANOPTIC_SPLIT = "val"
NUMBERS_PER_LABEL = 256
_LABELS = {label.name: value for value, label in enumerate(V1_2.labels)}
_BIRDS = ("flamingo", "penguin", "rooster")
_VISTAS_ANIMALS = (
    *("dog", "cat", "horse", "cow", "pig", "sheep", "elephant", "rabbit", "panda", "fox"),
    *("giraffe", "crab", "turtle", "frog", "snail"),
)
_PLANTS = ("cactus", "palm tree", "sunflower", "tree")
_NAMES = {
    **dict.fromkeys(_BIRDS, "Bird"),
    **dict.fromkeys(_VISTAS_ANIMALS, "Ground Animal"),
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


def ade20k_class(name: str) -> int | None:
    """The class that ADE20K would give to something of a scene; what it lacks is a toy.

    Args:
        name: object name without its color, or stuff name.

    Returns:
        Class id from 0, or None for what stays unlabelled.
    """
    class_name = _CLASSES.get(name, "toy")
    return None if class_name is None else CLASS_NAMES.index(class_name)


def write_ade20k(root: str | Path) -> None:
    """Write six training and three validation pictures in the layout of the two downloads.

    With the oddities of the real data: pixels of value 0 (unlabelled), a thing without an
    instance number, an instance that reaches over the edge of its class, a greyscale and a CMYK
    JPEG.

    Args:
        root: the datasets folder, in which `ADEChallengeData2016` is made.
    """
    for split, scene_ids in ADE20K_SCENE_IDS.items():
        paths = Ade20kPaths(root, split)
        for folder in (paths.image_root, paths.label_root, paths.instance_label_root):
            folder.mkdir(parents=True, exist_ok=True)
        for number, scene_id in enumerate(scene_ids, start=1):
            scene = miniature_scene(scene_id)
            stem = f"ADE_{split}_{number:08d}"
            skip_first = split == SPLIT_WITHOUT_INSTANCE and number == 1
            image = Image.fromarray(scene.image)
            mode = {GREY_PICTURE: "L", CMYK_PICTURE: "CMYK"}.get(stem, "RGB")
            image.convert(mode).save(paths.image_root / f"{stem}.jpg", quality=92)
            labels = draw_labels(scene)
            Image.fromarray(labels).save(paths.label_root / f"{stem}.png")
            instances = draw_ade20k_instances(scene, skip_first=skip_first)
            Image.fromarray(instances).save(paths.instance_label_root / f"{stem}.png")


def draw_labels(scene: Scene) -> np.ndarray:
    """The scene parsing annotation.

    Returns:
        uint8 (H, W): class id + 1, 0 where unlabelled.
    """
    values = [ade20k_class(name) for name in STUFF_NAMES]
    lookup = np.array([0 if value is None else value + 1 for value in values], np.uint8)
    labels = lookup[scene.stuff]
    for thing in scene.objects:
        # The column at its right edge went to what is behind it.
        mask = thing.mask.copy()
        mask[:, thing.box[2] - 1] = False
        labels[mask] = ade20k_class(thing.object_name) + 1
    labels[-UNLABELLED_ROWS:] = 0
    return labels


def draw_ade20k_instances(scene: Scene, *, skip_first: bool = False) -> np.ndarray:
    """The instance annotation; things that are stuff in ADE20K (trees, buildings) have none.

    Args:
        scene: the scene.
        skip_first: leave out the first thing.

    Returns:
        uint8 (H, W, 3): category from 1, number of the instance in the picture from 1, 0.
    """
    instances = np.zeros((*scene.stuff.shape, 3), np.uint8)
    for number, thing in enumerate(_things(scene)[int(skip_first) :], start=1):
        category = THING_IDS.index(ade20k_class(thing.object_name)) + 1
        instances[thing.mask] = (category, number, 0)
    instances[-UNLABELLED_ROWS:] = 0
    return instances


def _things(scene: Scene) -> list[SceneObject]:
    return [thing for thing in scene.objects if ade20k_class(thing.object_name) not in STUFF_IDS]


def write_mapillary_vistas(root: str | Path) -> None:
    """Write four training and two validation pictures in the layout of version 1.2.

    With the oddities of the real data: label images with a palette, 16-bit instances PNGs,
    unlabelled pixels as label 65, image ids that are no numbers.

    Args:
        root: the datasets folder, in which `mapillary_vistas` is made.
    """
    for split, scene_ids in VISTAS_SCENE_IDS.items():
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


def draw_vistas_instances(scene: Scene) -> np.ndarray:
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
    instances = draw_vistas_instances(scene)
    Image.fromarray(instances).save(paths.instance_root / f"{key}.png")
    labels = Image.fromarray((instances // NUMBERS_PER_LABEL).astype(np.uint8))
    labels.putpalette([part for label in V1_2.labels for part in label.color])
    labels.save(paths.label_root / f"{key}.png")


def _write_panoptic(scene_ids: tuple[int, ...], paths: VistasPaths) -> None:
    paths.panoptic_root.mkdir(exist_ok=True)
    images, annotations = [], []
    for scene_id in scene_ids:
        key = image_key(scene_id)
        values = draw_vistas_instances(miniature_scene(scene_id)).astype(np.int64)
        unlabelled = values // NUMBERS_PER_LABEL == V1_2.ignore_label
        # Real ids are other numbers; 0 is void.
        segment_ids = np.where(unlabelled, 0, values + 1)
        Image.fromarray(ids_to_colours(segment_ids)).save(paths.panoptic_root / f"{key}.png")
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
