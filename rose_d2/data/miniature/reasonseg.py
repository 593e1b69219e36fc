"""ReasonSeg in miniature, in LISA's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from rose_d2.data.datasets.reasonseg import FOLDER
from rose_d2.data.miniature.scenes import miniature_scene

# Not among the images of the other miniatures.
SPLIT_IMAGES = {"train": (401, 402, 403), "val": (404, 405), "test": (406, 407)}


def write_reasonseg(root: str | Path) -> None:
    """Write ReasonSeg/{train,val,test}/<name>.jpg and <name>.json.

    With the oddities of the real data: several questions for one image, "ignore" polygons over
    and under the target, the obsolete label "flag", and text that is not UTF-8.

    Args:
        root: the datasets folder.
    """
    for split, image_ids in SPLIT_IMAGES.items():
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
