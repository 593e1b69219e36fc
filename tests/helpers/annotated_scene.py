"""A hand-made scene of 20 x 40 pixels (rows x columns) that several data tests read.

Rows 0-9 are sky, rows 10-17 grass, rows 18-19 void. On it a dog (rows 2-7, columns 2-7), a cat
(rows 10-15, columns 30-35) and a crowd of dogs (rows 11-13, columns 20-25).
"""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

HEIGHT, WIDTH = 20, 40
THINGS = ["dog", "cat", "red car"]
STUFF = ["sky", "grass"]


def _box_polygon(left, top, right, bottom):
    """Covers columns left..right-1 and rows top..bottom-1."""
    return [left, top, right, top, right, bottom, left, bottom]


@pytest.fixture
def scene(tmp_path):
    """Dataset dicts of the scene by task."""
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    ids[:10], ids[10:18] = 7, 300
    ids[2:8, 2:8], ids[10:16, 30:36], ids[11:14, 20:26] = 70000, 2, 5
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "panoptic.png")
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[2:8, 2:8] = (200, 0, 0)
    image[10:16, 30:36] = (0, 200, 0)
    Image.fromarray(image).save(tmp_path / "image.png")
    labels = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    labels[ids == 7], labels[ids == 300], labels[ids == 70000], labels[ids == 2] = 3, 4, 0, 1
    Image.fromarray(labels).save(tmp_path / "labels.png")

    common = {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 1,
        "height": HEIGHT,
        "width": WIDTH,
    }
    panoptic = {
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "segments_info": [
            {"id": 7, "category_id": 3, "isthing": False, "iscrowd": 0},
            {"id": 300, "category_id": 4, "isthing": False, "iscrowd": 0},
            {"id": 70000, "category_id": 0, "isthing": True, "iscrowd": 0},
            {"id": 2, "category_id": 1, "isthing": True, "iscrowd": 0},
            {"id": 5, "category_id": 0, "isthing": True, "iscrowd": 1},
        ],
    }
    annotations = [
        _annotation(1, (30, 10, 36, 16)),
        _annotation(0, (20, 11, 26, 14), iscrowd=1),
        _annotation(0, (2, 2, 8, 8)),
    ]
    return {
        "panoptic": {**common, **panoptic},
        "semantic": {**common, **panoptic, "sem_seg_file_name": str(tmp_path / "labels.png")},
        "instance": {**common, **panoptic, "annotations": annotations},
        "referring": {
            **common,
            "annotations": annotations,
            "target_indices": [2],
            "sentence": "the dog on the left",
            "ref_id": 8,
            "sent_id": 9,
        },
    }


def _annotation(category_id, box, iscrowd=0):
    return {
        "bbox": list(box),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category_id,
        "segmentation": [_box_polygon(*box)],
        "iscrowd": iscrowd,
    }


@pytest.fixture
def registered_scenes(scene):
    """The scene registered three times per task as test_{task}; names by task."""
    names = {}
    for task, record in scene.items():
        name = names[task] = f"test_{task}"
        copies = [{**record, "image_id": image_id} for image_id in range(3)]
        DatasetCatalog.register(name, lambda copies=copies: [dict(copy) for copy in copies])
        MetadataCatalog.get(name).set(task=task, thing_classes=THINGS, ignore_label=255)
        if task in ("semantic", "panoptic"):
            MetadataCatalog.get(name).set(stuff_classes=THINGS + STUFF)
    yield names
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
