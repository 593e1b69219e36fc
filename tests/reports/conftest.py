"""A registered instance dataset of eight images with saved predictions, better ones first."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image

from rose_d2.evaluation.predictions import PredictionStore
from rose_d2.layers.masks import masks_to_boxes
from rose_d2.structures.category_names import CategoryNames

NAME = "test_results_page"
HEIGHT, WIDTH, NUM = 24, 40, 8
EVIL = "<script>alert('x')</script>"


def rectangle(start, end):
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[4:20, start:end] = True
    return mask


def output(masks, names, classes):
    masks = torch.stack(masks)
    return {
        "instances": Instances(
            (HEIGHT, WIDTH),
            pred_masks=masks,
            pred_boxes=masks_to_boxes(masks),
            scores=torch.tensor([0.9 - 0.1 * i for i in range(len(masks))]),
            pred_classes=torch.tensor(classes),
            pred_category_names=CategoryNames(names),
        )
    }


def image_output(index):
    """The dog is found in the first four images; in the others it has a harmful name."""
    is_found = index < NUM // 2
    names = ["dog" if is_found else EVIL, "cat"]
    classes = [0 if is_found else -1, 1]
    return output([rectangle(2, 14), rectangle(20 + index, 38)], names, classes)


def write_store(folder, fingerprint, indices):
    store = PredictionStore(folder, fingerprint)
    for index in indices:
        store.add(str(index), image_output(index), "instance")
    store.close()


@pytest.fixture
def page_data(tmp_path):
    """Folder of the predictions, their dataset, and the folder of its images."""
    boxes = [(2, 14), (20, 38)]
    annotations = [
        {"category_id": i, "iscrowd": 0, "segmentation": [[x1, 4, x2, 4, x2, 20, x1, 20]]}
        for i, (x1, x2) in enumerate(boxes)
    ]
    records = []
    for index in range(NUM):
        path = tmp_path / "images" / f"{index} <i>.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 20 * index, np.uint8)).save(path)
        records.append(
            {
                "file_name": str(path),
                "image_id": index,
                "height": HEIGHT,
                "width": WIDTH,
                "annotations": annotations,
            }
        )
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        evaluator_type="coco",
        thing_classes=["dog", "cat"],
        image_root=str(tmp_path / "images"),
    )
    folder = tmp_path / "predictions" / NAME
    write_store(folder, {"dataset": NAME, "config_hash": "abc"}, range(NUM))
    yield SimpleNamespace(folder=folder, name=NAME, images=tmp_path / "images", num=NUM)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
