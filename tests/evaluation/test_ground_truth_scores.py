"""Answers equal to the ground truth score 100 at every level, on clip-art and on your own data.

The public datasets have the same test beside their loaders, in tests/data/datasets.
"""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.datasets.builtin import DEFAULT_ROOT
from rose_d2.data.datasets.clipart import register_clipart
from rose_d2.data.datasets.custom import register_custom_coco, register_custom_labels
from rose_d2.data.datasets.registration import unregister
from rose_d2.evaluation.build import build_evaluator
from rose_d2.evaluation.ground_truth import load_objects
from rose_d2.layers.masks import masks_to_boxes
from rose_d2.structures.category_names import CategoryNames
from rose_d2.synthetic.clipart import BenchmarkSettings, write_benchmark

NAME = "rose_test_custom_truth"


@pytest.fixture(autouse=True)
def _unregister():
    yield
    unregister(NAME)


@pytest.fixture
def evaluator(tmp_path):
    """Builds the evaluator of a registered dataset."""

    def build(name=NAME):
        cfg = get_cfg()
        add_rose_config(cfg)
        cfg.OUTPUT_DIR, cfg.MODEL.LMM.IMAGE_SIZE = str(tmp_path / "run"), 84
        cfg.TEST.VOCABULARY.WORDNET = ""
        built = build_evaluator(cfg, name)
        built.reset()
        return built

    return build


@pytest.fixture(scope="module")
def clipart(tmp_path_factory):
    """A clip-art benchmark of a few images, registered for the tests of this file."""
    folder = tmp_path_factory.mktemp("datasets")
    settings = BenchmarkSettings(1, {"train": 1, "val": 2, "val_unseen": 1})
    write_benchmark(settings, folder / "clipart")
    register_clipart(folder)
    yield
    register_clipart(DEFAULT_ROOT)


def perfect_output(record, names):
    """The ground truth in the model's output format, every name by the rule "exact"."""
    objects = load_objects(record)
    classes = torch.tensor(objects.classes, dtype=torch.long)
    instances = Instances(
        (record["height"], record["width"]),
        pred_masks=objects.masks,
        pred_boxes=masks_to_boxes(objects.masks),
        scores=torch.linspace(0.9, 0.8, len(objects)),
        pred_classes=classes,
        mapped_classes=classes,
        mapping_rules=torch.zeros_like(classes),
        pred_category_names=CategoryNames([names[k] for k in objects.classes]),
    )
    if "sem_seg_file_name" in record:
        labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
        answer = {"sem_seg_labels": labels.clamp(max=len(names))}
    elif "annotations" not in record:
        colours = np.array(Image.open(record["pan_seg_file_name"])).astype(np.int32)
        ids = torch.from_numpy(colours @ np.array([1, 256, 65536], dtype=np.int32))
        answer = {"panoptic_seg": (ids, record["segments_info"])}
    else:
        return {"instances": instances}
    levels = dict.fromkeys(("exact", "normalised", "synonym"), answer)
    return {"instances": instances, "levels": levels, **answer}


@pytest.mark.parametrize(
    ("name", "task", "metric"),
    [
        ("clipart_instance_val", "segm", "AP"),
        ("clipart_instance_val_unseen", "bbox", "AP"),
        ("clipart_sem_seg_val", "sem_seg", "mIoU"),
        ("clipart_panoptic_val", "panoptic_seg", "PQ"),
    ],
)
def test_clipart(clipart, evaluator, name, task, metric):
    metadata = MetadataCatalog.get(name)
    names = metadata.thing_classes if task in ("segm", "bbox") else metadata.stuff_classes
    judge = evaluator(name)
    for record in DatasetCatalog.get(name):
        judge.process([record], [perfect_output(record, names)])
    results = judge.evaluate()
    assert results[task][metric] == pytest.approx(100)
    levels = dict.fromkeys(("exact", "normalised", "synonym"), pytest.approx(100))
    assert results[f"{task}_levels"] == results["names_levels"] == levels
    assert results["names"]["name_exact"] == results["names"]["recall"] == 100


@pytest.mark.parametrize("first_id", [0, 1])
def test_coco_annotations(tmp_path, evaluator, first_id):
    """Ids from 0, no "iscrowd" on some, a crowd, an annotation without a mask."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "a.png")
    square = [[2, 2, 12, 2, 12, 12, 2, 12]]
    shapes = [square, [[15, 5, 25, 5, 20, 15]], {"size": [20, 30], "counts": [400, 200]}, []]
    boxes = [[2, 2, 10, 10], [15, 5, 10, 10], [20, 0, 10, 20], [1, 1, 1, 1]]
    annotations = [
        {"id": first_id + k, "image_id": 5, "category_id": 7, "segmentation": s, "bbox": b}
        for k, (s, b) in enumerate(zip(shapes, boxes, strict=True))
    ]
    annotations[1]["category_id"], annotations[2]["iscrowd"] = 40, 1
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": 30, "height": 20}],
        "categories": [{"id": 40, "name": "zebra"}, {"id": 7, "name": "cup"}],
        "annotations": annotations,
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    register_custom_coco(NAME, tmp_path / "images", tmp_path / "annotations.json")
    (record,) = DatasetCatalog.get(NAME)
    output = perfect_output(record, ["cup", "zebra"])
    judge = evaluator()
    judge.process([record], [output])
    results = judge.evaluate()
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["names"]["name_exact"] == 100


def test_label_pngs(tmp_path, evaluator):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    labels = np.full((6, 8), 255, dtype=np.uint8)
    labels[:3], labels[3:5] = 0, 1
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.jpg")
    Image.fromarray(labels).save(tmp_path / "labels" / "a.png")
    (tmp_path / "classes.txt").write_text("traffic light\nsky: stuff\n")
    register_custom_labels(NAME, tmp_path / "images", tmp_path / "labels", tmp_path / "classes.txt")
    (record,) = DatasetCatalog.get(NAME)
    known = torch.from_numpy(labels).long().clamp(max=2)
    scores = torch.zeros(3, 6, 8).scatter_(0, known[None], 1.0)
    nothing = Instances(
        (6, 8),
        pred_masks=torch.zeros(0, 6, 8, dtype=torch.bool),
        pred_classes=torch.zeros(0, dtype=torch.long),
        pred_category_names=CategoryNames([]),
    )
    judge = evaluator()
    judge.process([record], [{"sem_seg": scores, "instances": nothing}])
    assert judge.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)
