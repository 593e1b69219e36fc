"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF, gRefCOCO and ReasonSeg in miniature, in their layouts."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from rose_d2.data.coco_files import read_json
from rose_d2.data.datasets.reasonseg import FOLDER
from rose_d2.data.datasets.refer_files import load_plain_pickle
from rose_d2.synthetic.annotate import encode_mask, instance_annotations
from rose_d2.synthetic.expressions import list_expressions
from rose_d2.synthetic.miniature_coco import miniature_scene, run_lengths, trace_polygons
from rose_d2.synthetic.scene import Scene

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
# No scene has one.
ABSENT_NAME = "zeppelin"
_NOTHING = -1
# Not among the images of the other miniatures.
REASONSEG_SPLIT_IMAGES = {"train": (401, 402, 403), "val": (404, 405), "test": (406, 407)}


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


def write_grefcoco(root: str | Path) -> None:
    """Write grefcoco/{instances.json,grefs(unc).json}; its images are RefCOCO's.

    As in the real data `ann_id` and `category_id` are lists, [-1] where a sentence is about
    nothing, and a list may name a crowd.

    Args:
        root: the datasets folder, with the miniature of RefCOCO in it.
    """
    source, folder = Path(root) / "refcoco", Path(root) / "grefcoco"
    folder.mkdir(parents=True, exist_ok=True)
    instances = read_json(source / "instances.json")
    instances["info"] = {"description": "miniature of grefcoco"}
    names = {category["id"]: category["name"] for category in instances["categories"]}
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in instances["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    references = load_plain_pickle(source / "refs(unc).p")
    generalised = [
        _generalised(r, [r["ann_id"]], [r["category_id"]], _texts(r)) for r in references
    ]
    first_of_image: dict[int, dict[str, Any]] = {}
    for reference in references:
        first_of_image.setdefault(reference["image_id"], reference)
    for reference in first_of_image.values():
        generalised += _generalise(reference, objects[reference["image_id"]], names)
    _number(generalised)
    for name, content in (("instances", instances), ("grefs(unc)", generalised)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _texts(reference: dict[str, Any]) -> list[str]:
    return [sentence["sent"] for sentence in reference["sentences"]]


def _generalise(
    reference: dict[str, Any], objects: list[dict[str, Any]], names: dict[int, str]
) -> Iterator[dict[str, Any]]:
    """References to everything and to nothing in the image of a reference."""
    categories = [annotation["category_id"] for annotation in objects]
    every = " and ".join(names[category] for category in categories)
    ids = [annotation["id"] for annotation in objects]
    if len(ids) > 1:
        yield _generalised(reference, ids, categories, [f"the {every}", f"all {len(ids)} objects"])
    yield _generalised(reference, [_NOTHING], [_NOTHING], [f"the {ABSENT_NAME}"])


def _generalised(
    model: dict[str, Any], ann_ids: list[int], category_ids: list[int], texts: list[str]
) -> dict[str, Any]:
    """A record without ids of its own, of the same image and split as another."""
    return {
        "image_id": model["image_id"],
        "split": model["split"],
        "file_name": model["file_name"],
        "ann_id": ann_ids,
        "category_id": category_ids,
        "no_target": ann_ids == [_NOTHING],
        "sentences": [{"tokens": text.split(), "raw": text, "sent": text} for text in texts],
    }


def _number(references: list[dict[str, Any]]) -> None:
    """Give references and sentences their ids."""
    sent_id = 0
    for ref_id, reference in enumerate(references):
        for sentence in reference["sentences"]:
            sentence["sent_id"] = sent_id
            sent_id += 1
        reference["ref_id"] = ref_id
        reference["sent_ids"] = [sentence["sent_id"] for sentence in reference["sentences"]]


def dump_as_python2(content: Any) -> bytes:
    """The pickle of Python 2, protocol 2: its text is byte strings, here in Latin-1.

    Args:
        content: lists, dicts, text, and integers below 2 ** 31.
    """
    return b"\x80\x02" + _encode(content) + b"."


def _encode(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_encode(k) + _encode(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_encode, value)) + b"e"
    if isinstance(value, str):
        text = value.encode("latin-1")
        is_short = len(text) < 256
        length = b"U" + bytes([len(text)]) if is_short else b"T" + struct.pack("<i", len(text))
        return length + text
    return b"J" + struct.pack("<i", value)


def write_reasonseg(root: str | Path) -> None:
    """Write ReasonSeg/{train,val,test}/<name>.jpg and <name>.json.

    With the oddities of the real data: several questions for one image, "ignore" polygons over
    and under the target, the obsolete label "flag", and text that is not UTF-8.

    Args:
        root: the datasets folder.
    """
    for split, image_ids in REASONSEG_SPLIT_IMAGES.items():
        folder = Path(root) / FOLDER / split
        folder.mkdir(parents=True, exist_ok=True)
        for image_id in image_ids:
            scene = miniature_scene(image_id)
            Image.fromarray(scene.image).save(folder / f"{image_id}.jpg", quality=90)
            first, *others = scene.objects
            shapes = [_shape("target", polygon) for polygon in _outlines(first.mask)]
            shapes += [_shape("ignore", p) for other in others[:1] for p in _outlines(other.mask)]
            shapes.append(_shape("flag", [[0, 0], [5, 0], [5, 5]]))
            question = f"Which part shows a {first.name} \u2013 or a picture of one?"
            annotation = {
                "text": [question, first.name],
                "is_sentence": True,
                "shapes": shapes,
            }
            encoded = json.dumps(annotation, ensure_ascii=False).encode("cp1252")
            (folder / f"{image_id}.json").write_bytes(encoded)


def _shape(label: str, points: list[list[float]]) -> dict[str, Any]:
    return {"label": label, "labels": [label], "shape_type": "polygon", "points": points}


def _outlines(mask: np.ndarray) -> list[list[list[float]]]:
    """Polygons around the parts of a mask."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return [contour[:, 0].astype(float).tolist() for contour in contours if len(contour) >= 3]
