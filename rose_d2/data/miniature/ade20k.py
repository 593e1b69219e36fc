"""ADE20K in miniature, as it comes from its site: before `datasets/prepare_ade20k.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rose_d2.data.clipart.categories import STUFF_NAMES
from rose_d2.data.clipart.scene import Scene, SceneObject
from rose_d2.data.datasets.ade20k import CLASS_NAMES, STUFF_IDS, THING_IDS, Ade20kPaths
from rose_d2.data.miniature.scenes import miniature_scene

SCENE_IDS = {"train": (366, 302, 303, 376, 310, 316), "val": (309, 311, 383)}
"""The clip-art scene of each picture, in order, by split."""

GREY_PICTURE = "ADE_train_00000002"
CMYK_PICTURE = "ADE_train_00000003"

# The rows at the bottom of a picture that nobody labelled.
UNLABELLED_ROWS = 4
# In the first picture of a split, the thing at the back has a class but no instance.
SPLIT_WITHOUT_INSTANCE = "train"

_ANIMALS = (
    *("dog", "cat", "horse", "cow", "pig", "sheep", "elephant", "rabbit", "rooster", "penguin"),
    *("fish", "octopus", "crab", "turtle", "frog", "butterfly", "snail", "panda", "fox"),
    *("giraffe", "ladybug", "flamingo"),
)
_FOODS = (
    *("apple", "banana", "pineapple", "carrot", "grapes", "watermelon", "mushroom", "pizza"),
    *("hamburger", "donut", "cake"),
)
_CLASSES = {
    **dict.fromkeys(_ANIMALS, "animal"),
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
    for split, scene_ids in SCENE_IDS.items():
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
            instances = draw_instances(scene, skip_first=skip_first)
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


def draw_instances(scene: Scene, *, skip_first: bool = False) -> np.ndarray:
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
