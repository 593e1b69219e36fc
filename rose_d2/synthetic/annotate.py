"""Turns a composed scene into records of the official annotation layouts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rose_d2.data.datasets.clipart import CATEGORY_IDS, STUFF_NAMES, THING_NAMES
from rose_d2.structures.mask_codec import encode_mask, ids_to_colours
from rose_d2.synthetic.scene import Scene

ANNOTATIONS_PER_IMAGE = 100


REFERENCES_PER_IMAGE = 10


SENTENCES_PER_REFERENCE = 10


# Panoptic segment id = category id * this + running number, so ids fill more than one byte.
SEGMENTS_PER_CATEGORY = 1000


@dataclass
class SceneRecord:
    """Everything about one scene that goes into JSON or pickle files.

    Attributes:
        image: COCO image record.
        annotations: COCO instance annotations.
        panoptic: COCO panoptic annotation.
        references: REFER records.
    """

    image: dict
    annotations: list[dict]
    panoptic: dict
    references: list[dict]


def _xywh(box: tuple[int, int, int, int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def instance_annotations(
    scene: Scene, image_id: int, category_ids: Mapping[str, int] = CATEGORY_IDS
) -> list[dict]:
    """COCO instance annotations of the things of a scene, back to front."""
    return [
        {
            "id": image_id * ANNOTATIONS_PER_IMAGE + index + 1,
            "image_id": image_id,
            "category_id": category_ids[thing.name],
            "segmentation": encode_mask(thing.mask),
            "area": thing.area,
            "bbox": _xywh(thing.box),
            "iscrowd": 0,
        }
        for index, thing in enumerate(scene.objects)
    ]


def label_map(scene: Scene) -> np.ndarray:
    """uint8 (H, W) of contiguous classes: things 0..T-1, then stuff; every pixel has one."""
    labels = scene.stuff + len(THING_NAMES)
    for thing in scene.objects:
        labels[thing.mask] = CATEGORY_IDS[thing.name] - 1
    return labels.astype(np.uint8)


def panoptic_map(scene: Scene, image_id: int) -> tuple[np.ndarray, dict]:
    """Panoptic segments of a scene: one per thing, one per stuff class that is visible.

    Args:
        scene: the scene.
        image_id: its id.

    Returns:
        uint8 (H, W, 3) whose segment id is R + 256 G + 65536 B, and the COCO panoptic annotation
        (its `file_name` is that of the PNG).
    """
    segments = []
    ids = np.zeros(scene.stuff.shape, np.int64)
    occupied = np.zeros(scene.stuff.shape, bool)
    regions = []
    for thing in scene.objects:
        regions.append((thing.name, thing.mask, thing.area, thing.box))
        occupied |= thing.mask
    for label in np.flatnonzero(np.bincount(scene.stuff[~occupied])):
        mask = (scene.stuff == label) & ~occupied
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        regions.append((STUFF_NAMES[label], mask, int(mask.sum()), box))
    for index, (name, mask, area, box) in enumerate(regions):
        category_id = CATEGORY_IDS[name]
        segment_id = category_id * SEGMENTS_PER_CATEGORY + index
        ids[mask] = segment_id
        segments.append(
            {
                "id": segment_id,
                "category_id": category_id,
                "area": area,
                "bbox": _xywh(box),
                "iscrowd": 0,
            }
        )
    png = ids_to_colours(ids)
    record = {
        "image_id": image_id,
        "file_name": f"{image_id:06d}.png",
        "segments_info": segments,
    }
    return png, record


def refer_records(
    references: list[tuple[int, list[str]]], annotations: list[dict], file_name: str, split: str
) -> list[dict]:
    """REFER records, each one thing with its sentences.

    Args:
        references: pairs (index of the thing, sentences).
        annotations: the scene's instance annotations, in the order of that index.
        file_name: path of the image relative to the image root.
        split: value of the `split` field.
    """
    records = []
    for number, (index, sentences) in enumerate(references):
        annotation = annotations[index]
        ref_id = annotation["image_id"] * REFERENCES_PER_IMAGE + number + 1
        sent_ids = [ref_id * SENTENCES_PER_REFERENCE + k for k in range(len(sentences))]
        records.append(
            {
                "ref_id": ref_id,
                "ann_id": annotation["id"],
                "category_id": annotation["category_id"],
                "image_id": annotation["image_id"],
                "file_name": file_name,
                "split": split,
                "sent_ids": sent_ids,
                "sentences": [
                    {
                        "raw": sentence,
                        "sent": sentence,
                        "sent_id": sent_id,
                        "tokens": sentence.split(),
                    }
                    for sentence, sent_id in zip(sentences, sent_ids, strict=True)
                ],
            }
        )
    return records
