"""COCO 2017 and COCO-Stuff in miniature, as downloaded: before `datasets/prepare_coco_stuff.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from rose_d2.data.datasets.clipart import STUFF_NAMES
from rose_d2.data.datasets.coco import (
    FIRST_STUFF_ID,
    IGNORE_LABEL,
    STUFF_LABELS,
    CocoPaths,
    CocoStuffPaths,
)
from rose_d2.prepare.preparation import dump_json
from rose_d2.structures.mask_codec import ids_to_colours
from rose_d2.synthetic.annotate import encode_mask
from rose_d2.synthetic.scene import Scene, compose_scene

IMAGE_IDS = {"train": (101, 102, 103, 104, 105, 106), "val": (201, 202, 203)}
EMPTY_POLYGON_IMAGE = 101
# In none of the miniature referring datasets' evaluation splits, so that training meets it.
CORRUPT_IMAGE = 103
GREY_IMAGE = 105
CMYK_IMAGE = 106
# So many things of one category become one crowd region, all but the first of them.
CROWD_SIZE = 3
COCO_IDS = {category["name"]: category["id"] for category in COCO_CATEGORIES}
_STUFF_IDS = {name: FIRST_STUFF_ID + k for k, name in enumerate(STUFF_LABELS)}
_THINGS = {
    "ambulance": "truck",
    "flamingo": "bird",
    "hamburger": "sandwich",
    "panda": "bear",
    "penguin": "bird",
    "rooster": "bird",
    "soccer ball": "sports ball",
    "telephone": "cell phone",
    "tractor": "truck",
}
# Label in COCO-Stuff and in COCO panoptic; what is neither here nor a thing stays unlabelled.
_STUFF = {
    **dict.fromkeys(("cap", "shirt"), ("clothes", None)),
    **dict.fromkeys(("grapes", "pineapple", "watermelon"), ("fruit", "fruit")),
    **dict.fromkeys(("palm tree", "tree"), ("tree", "tree-merged")),
    "cactus": ("plant-other", None),
    "castle": ("building-other", "building-other-merged"),
    "floor": ("floor-other", "floor-other-merged"),
    "grass": ("grass", "grass-merged"),
    "mushroom": ("vegetable", "food-other-merged"),
    "road": ("road", "road"),
    "sand": ("sand", "sand"),
    "sky": ("sky-other", "sky-other-merged"),
    "snow": ("snow", "snow"),
    "sunflower": ("flower", "flower"),
    "wall": ("wall-other", "wall-other-merged"),
    "water": ("water-other", "water-other"),
}
_SEED = 3


class AnnotatedThing(NamedTuple):
    """What COCO has one annotation for.

    Attributes:
        category_id: COCO's.
        mask: bool (H, W).
        iscrowd: whether it is a group that nobody separated.
    """

    category_id: int
    mask: np.ndarray
    iscrowd: bool


def write_coco(root: str | Path, *, corrupt_image: bool = False) -> None:
    """Write six training and three validation images with all annotations of the downloads.

    With the oddities of the real data: category ids with gaps, polygons and both kinds of
    run-length code, crowd regions, unlabelled pixels, label maps that disagree with the polygons
    by a pixel, an annotation without a polygon, a greyscale and a CMYK JPEG.

    Args:
        root: the datasets folder, in which `coco` is made.
        corrupt_image: cut `CORRUPT_IMAGE`'s file in half.
    """
    for split in IMAGE_IDS:
        _write_split(CocoStuffPaths(Path(root), split))
    if corrupt_image:
        path = CocoPaths(Path(root), "train").image_root / f"{CORRUPT_IMAGE:012d}.jpg"
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


def _write_split(paths: CocoStuffPaths) -> None:
    for folder in (paths.image_root, paths.panoptic_root, paths.stuff_thing_maps):
        folder.mkdir(parents=True, exist_ok=True)
    paths.instances_json.parent.mkdir(parents=True, exist_ok=True)
    images, instances, panoptic = [], [], []
    for image_id in IMAGE_IDS[paths.split]:
        scene = miniature_scene(image_id)
        things = find_things(scene)
        stem, size = f"{image_id:012d}", dict(zip(("height", "width"), scene.stuff.shape))
        segments = _write_pictures(stem, scene, things, paths)
        images.append({"id": image_id, "file_name": f"{stem}.jpg", **size})
        instances += instance_annotations(things, image_id)
        annotation = {"image_id": image_id, "file_name": f"{stem}.png"}
        panoptic.append(annotation | {"segments_info": segments})
    common = {"info": {"description": f"COCO 2017 {paths.split} in miniature"}, "images": images}
    categories = [
        {"id": c["id"], "name": c["name"], "supercategory": c["name"]} for c in COCO_CATEGORIES
    ]
    is_thing = [category["isthing"] for category in COCO_CATEGORIES]
    dump_json(
        common | {"annotations": instances, "categories": categories[: sum(is_thing)]},
        paths.instances_json,
    )
    categories = [c | {"isthing": flag} for c, flag in zip(categories, is_thing, strict=True)]
    dump_json(common | {"annotations": panoptic, "categories": categories}, paths.panoptic_json)


def _write_pictures(
    stem: str, scene: Scene, things: list[AnnotatedThing], paths: CocoStuffPaths
) -> list[dict[str, Any]]:
    """Writes the JPEG and the two PNGs of an image; returns its panoptic `segments_info`."""
    mode = {GREY_IMAGE: "L", CMYK_IMAGE: "CMYK"}.get(int(stem), "RGB")
    Image.fromarray(scene.image).convert(mode).save(paths.image_root / f"{stem}.jpg", quality=92)
    Image.fromarray(draw_label_map(scene)).save(paths.stuff_thing_maps / f"{stem}.png")
    segment_ids, segments = draw_segments(scene, things)
    Image.fromarray(ids_to_colours(segment_ids)).save(paths.panoptic_root / f"{stem}.png")
    return segments


def find_things(scene: Scene) -> list[AnnotatedThing]:
    """The things of a scene that COCO has a category for, back to front; crowds last."""
    masks: dict[int, list[np.ndarray]] = {}
    for thing in scene.objects:
        category_id = thing_id(thing.object_name)
        if category_id is not None:
            masks.setdefault(category_id, []).append(thing.mask)
    things, crowds = [], []
    for category_id, found in masks.items():
        single = found[:1] if len(found) >= CROWD_SIZE else found
        things += [AnnotatedThing(category_id, mask, False) for mask in single]
        if len(single) < len(found):
            crowd = np.logical_or.reduce(found[1:])
            crowds.append(AnnotatedThing(category_id, crowd, True))
    return things + crowds


def thing_id(object_name: str) -> int | None:
    """COCO's id for an object of a scene, None if it is none of the 80 things."""
    name = _THINGS.get(object_name, object_name)
    return None if object_name in _STUFF else COCO_IDS.get(name)


def draw_label_map(scene: Scene) -> np.ndarray:
    """COCO-Stuff's annotation: uint8 (H, W), label minus 1, 255 where unlabelled."""
    stuff = [_STUFF_IDS[_STUFF[name][0]] - 1 for name in STUFF_NAMES]
    label_map = np.array(stuff, dtype=np.uint8)[scene.stuff]
    for thing in scene.objects:
        if thing.object_name in _STUFF:
            label_map[thing.mask] = _STUFF_IDS[_STUFF[thing.object_name][0]] - 1
        else:
            label = thing_id(thing.object_name)
            label_map[thing.mask] = IGNORE_LABEL if label is None else label - 1
    return label_map


def draw_segments(
    scene: Scene, things: list[AnnotatedThing]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """COCO's panoptic annotation of a scene.

    Args:
        scene: the scene.
        things: its annotated things.

    Returns:
        int64 (H, W) of segment ids, 0 is void, and `segments_info`.
    """
    names = np.array([_STUFF[name][1] for name in STUFF_NAMES])[scene.stuff].astype(object)
    for thing in scene.objects:
        names[thing.mask] = _STUFF.get(thing.object_name, ("", None))[1]
    regions = [(COCO_IDS[name], names == name, 0) for name in sorted(set(names.ravel()) - {None})]
    regions += [(thing.category_id, thing.mask, int(thing.iscrowd)) for thing in things]
    segment_ids = np.zeros(scene.stuff.shape, dtype=np.int64)
    segments = []
    for number, (category_id, mask, iscrowd) in enumerate(regions, start=1):
        # Real ids are colours; these need the second and third byte too.
        segment_id = category_id * 1000 + number
        segment_ids[mask] = segment_id
        segment = {"id": segment_id, "category_id": category_id, "iscrowd": iscrowd}
        segments.append(segment | {"area": int(mask.sum()), "bbox": _box(mask)})
    return segment_ids, segments


def instance_annotations(things: list[AnnotatedThing], image_id: int) -> list[dict[str, Any]]:
    """COCO's instance annotations; crowds have uncompressed run lengths, as only they do there."""
    annotations = []
    for number, thing in enumerate(things, start=1):
        # Nearly all real ones are polygons; compressed code is allowed, and some tools write it.
        segmentation: Any = trace_polygons(thing.mask) if number % 2 else encode_mask(thing.mask)
        if thing.iscrowd:
            segmentation = run_lengths(thing.mask)
        annotations.append(
            {
                "id": image_id * 100 + number,
                "image_id": image_id,
                "category_id": thing.category_id,
                "segmentation": segmentation,
                "area": int(thing.mask.sum()),
                "bbox": _box(thing.mask),
                "iscrowd": int(thing.iscrowd),
            }
        )
    if image_id == EMPTY_POLYGON_IMAGE:
        empty = {"id": image_id * 100 + 99, "segmentation": [], "area": 0, "bbox": [0, 0, 0, 0]}
        annotations.append(annotations[0] | empty)
    return annotations


def trace_polygons(mask: np.ndarray) -> list[list[float]]:
    """Polygons around the parts of a mask, through the centres of its outermost pixels."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return [(contour + 0.5).ravel().tolist() for contour in contours if len(contour) >= 3]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run-length code: column by column, the first run is of zeros."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff([0, *changes.tolist(), len(pixels)]).tolist()
    return {"size": list(mask.shape), "counts": [0] * bool(pixels[0]) + counts}


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    x, y = int(columns.min()), int(rows.min())
    return [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]


def miniature_scene(image_id: int) -> Scene:
    """The clip-art scene of an image id: always the same one.

    Args:
        image_id: not negative; datasets that use one id show one picture.
    """
    return compose_scene(np.random.default_rng([_SEED, image_id]), unseen=False)
