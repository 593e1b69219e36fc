"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO in miniature, in their official layout."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from rose_d2.data.clipart.annotate import encode_mask, instance_annotations
from rose_d2.data.clipart.expressions import list_expressions
from rose_d2.data.clipart.scene import Scene
from rose_d2.data.miniature.coco import run_lengths, trace_polygons
from rose_d2.data.miniature.grefcoco import write_grefcoco
from rose_d2.data.miniature.python2_pickle import dump_as_python2
from rose_d2.data.miniature.scenes import miniature_scene

# An image in several splits is Google's way: its references are dealt out among them.
# Images 101 and 103 (30101 and 30102) are in no evaluation split, so training keeps something.
SPLIT_IMAGES: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {
    ("refcoco", "unc"): {
        "train": (101, 102, 103),
        "val": (104,),
        "testA": (105,),
        "testB": (106,),
    },
    ("refcoco", "google"): {"train": (101, 102, 103), "val": (102, 105), "test": (102, 106)},
    ("refcoco+", "unc"): {
        "train": (101, 102, 103),
        "val": (104,),
        "testA": (105,),
        "testB": (106,),
    },
    ("refcocog", "umd"): {"train": (101, 103, 104, 105), "val": (102,), "test": (106,)},
    ("refcocog", "google"): {"train": (101, 103, 106), "val": (106,)},
    ("refclef", "unc"): {
        "train": (30101, 30102),
        "val": (30103,),
        "testA": (30104,),
        "testB": (30105,),
        # One label for two splits, as the toolkit allows.
        "testBC": (30106,),
    },
    ("refclef", "berkeley"): {
        "train": (30101, 30102, 30104),
        "val": (30105,),
        "test": (30106,),
    },
}

# RefCOCO+ forbids words of place, RefCOCOg asks for whole descriptions.
_KINDS = {"refcoco+": ("name", "size"), "refcocog": ("relation", "position")}
_MAX_SENTENCES = 3
_COCO_IDS = {c["name"]: c["id"] for c in COCO_CATEGORIES if c["isthing"]}
_COCO_NAMES = {
    **dict.fromkeys(("rooster", "penguin", "flamingo"), "bird"),
    **dict.fromkeys(("ambulance", "tractor"), "truck"),
    "hamburger": "sandwich",
    "panda": "bear",
    "telephone": "cell phone",
    "soccer ball": "sports ball",
}
# Of the umbrellas in this image, the one that no expression singles out is a crowd.
_CROWD_IMAGE = 105
_SAIAPR_CATEGORIES = [{"id": 0, "name": "_background", "supercategory": ""}]


def write_refer(root: str | Path, *, with_images: bool = False) -> None:
    """Write the annotations of all five datasets, and RefCLEF's images.

    With the oddities of the real data: a `+` and parentheses in names, references whose
    `file_name` carries the annotation's number and is no file, objects that nobody refers to or
    that are a crowd, and for RefCLEF masks in several run-length codes, no categories, a label
    for two splits, and pickles of Python 2 with byte strings that are not ASCII.

    Args:
        root: the datasets folder.
        with_images: write coco/train2014 too. The same pictures are found in coco/train2017,
            where `write_coco` puts them.
    """
    root = Path(root)
    scenes = {
        image_id: miniature_scene(image_id)
        for splits in SPLIT_IMAGES.values()
        for image_ids in splits.values()
        for image_id in image_ids
    }
    for dataset in dict.fromkeys(dataset for dataset, _ in SPLIT_IMAGES):
        (root / dataset).mkdir(parents=True, exist_ok=True)
        _write_instances(root / dataset, dataset, scenes)
    for (dataset, split_by), splits in SPLIT_IMAGES.items():
        references = list(_list_references(dataset, splits, scenes))
        dump = dump_as_python2 if dataset == "refclef" else _dump_as_python3
        (root / dataset / f"refs({split_by}).p").write_bytes(dump(references))
    write_grefcoco(root)
    for image_id, scene in scenes.items():
        if _is_saiapr(image_id) or with_images:
            folder = "saiapr_tc-12" if _is_saiapr(image_id) else "coco/train2014"
            path = root / folder / _file_name(image_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.image).save(path, quality=90)


def _is_saiapr(image_id: int) -> bool:
    return image_id >= 30000


def _file_name(image_id: int) -> str:
    if _is_saiapr(image_id):
        return f"{image_id // 1000:02d}/images/{image_id}.jpg"
    return f"COCO_train2014_{image_id:012d}.jpg"


def _write_instances(folder: Path, dataset: str, scenes: dict[int, Scene]) -> None:
    images, annotations = [], []
    for image_id, scene in scenes.items():
        if _is_saiapr(image_id) == (dataset == "refclef"):
            height, width = scene.stuff.shape
            name = _file_name(image_id)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            annotations += _annotate(scene, image_id)
    content = {
        "info": {"description": f"miniature of {dataset}"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": _SAIAPR_CATEGORIES if dataset == "refclef" else _coco_categories(),
    }
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")


def _coco_categories() -> list[dict[str, Any]]:
    return [{"id": i, "name": name, "supercategory": name} for name, i in _COCO_IDS.items()]


def coco_category(object_name: str) -> int | None:
    """COCO's category id for a clip-art object, or None where COCO would not annotate it.

    Args:
        object_name: without its color.
    """
    return _COCO_IDS.get(_COCO_NAMES.get(object_name, object_name))


def _annotate(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """The annotations of an image; what COCO has no name for is not annotated there."""
    found = []
    pairs = zip(scene.objects, instance_annotations(scene, image_id), strict=True)
    for index, (thing, annotation) in enumerate(pairs):
        if _is_saiapr(image_id):
            middle = (thing.box[0] + thing.box[2]) // 2
            annotation["segmentation"] = _overlapping_codes(thing.mask, middle)
            annotation["category_id"] = -1
        else:
            annotation["category_id"] = coco_category(thing.object_name)
            annotation["segmentation"] = trace_polygons(thing.mask)
            if image_id == _CROWD_IMAGE and not _expressions(scene, index):
                annotation |= {"iscrowd": 1, "segmentation": run_lengths(thing.mask)}
        if annotation["category_id"] is not None:
            found.append(annotation)
    return found


def _overlapping_codes(mask: np.ndarray, middle: int) -> list[dict[str, Any]]:
    """An object in two codes that share a few columns."""
    columns = np.arange(mask.shape[1])
    return [encode_mask(mask & (columns < middle + 3)), encode_mask(mask & (columns > middle - 3))]


def _expressions(scene: Scene, index: int) -> dict[str, list[str]]:
    return list_expressions(scene.objects, *scene.stuff.shape, index)


def _list_references(
    dataset: str, splits: dict[str, tuple[int, ...]], scenes: dict[int, Scene]
) -> Iterator[dict[str, Any]]:
    ref_id = sent_id = 0
    for image_id in dict.fromkeys(i for image_ids in splits.values() for i in image_ids):
        labels = [label for label, image_ids in splits.items() if image_id in image_ids]
        annotated = {a["id"]: a for a in _annotate(scenes[image_id], image_id)}
        things = instance_annotations(scenes[image_id], image_id)
        referred = 0
        for index, annotation in enumerate(annotated.get(thing["id"]) for thing in things):
            texts = _draw_sentences(dataset, _expressions(scenes[image_id], index))
            if annotation is None or not texts:
                continue
            if dataset == "refclef" and ref_id == 0:
                texts[0] += ", voilà"
            yield _reference(ref_id, annotation, labels[referred % len(labels)], texts, sent_id)
            ref_id, sent_id, referred = ref_id + 1, sent_id + len(texts), referred + 1


def _draw_sentences(dataset: str, expressions: dict[str, list[str]]) -> list[str]:
    wanted = _KINDS.get(dataset, tuple(expressions))
    texts = [text for kind in wanted for text in expressions.get(kind, ())]
    # An image whose objects differ in nothing else is described by what there is.
    return (texts or [text for part in expressions.values() for text in part])[:_MAX_SENTENCES]


def _reference(
    ref_id: int, annotation: dict[str, Any], label: str, texts: list[str], sent_id: int
) -> dict[str, Any]:
    image_id = annotation["image_id"]
    path = Path(_file_name(image_id))
    return {
        "sent_ids": list(range(sent_id, sent_id + len(texts))),
        "file_name": f"{path.stem}_{annotation['id']}{path.suffix}",
        "ann_id": annotation["id"],
        "ref_id": ref_id,
        "image_id": image_id,
        "split": label,
        "sentences": [
            {
                "tokens": text.split(),
                "raw": f"{text.capitalize()}.",
                "sent_id": sent_id + number,
                "sent": text,
            }
            for number, text in enumerate(texts)
        ],
        "category_id": annotation["category_id"],
    }


def _dump_as_python3(content: Any) -> bytes:
    # Protocol 2 is the newest that Python 2 knows.
    return pickle.dumps(content, 2)
