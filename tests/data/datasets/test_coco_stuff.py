"""A hand-made split of one prepared image, 10 x 20 pixels: sky above grass, two people."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.datasets.builtin import DEFAULT_ROOT
from rose_d2.data.datasets.coco import (
    CLASS_OF_LABEL,
    COCO_STUFF_CLASSES,
    STUFF_LABELS,
    contiguous_labels,
    register_coco_stuff,
)
from rose_d2.data.scene_targets import SemanticTargetBuilder
from rose_d2.evaluation.build import build_evaluator
from rose_d2.evaluation.ground_truth import load_objects
from rose_d2.layers.masks import masks_to_boxes
from rose_d2.structures.category_names import CategoryNames

NAME = "coco_2017_val_stuff_sem_seg"
HEIGHT, WIDTH = 10, 20
PERSON, SKY, GRASS = 1, 157, 124
NEVER_ANNOTATED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def draw_segments():
    ids = np.full((HEIGHT, WIDTH), 1)
    ids[5:9], ids[9] = 300, 0
    ids[2:6, 2:6], ids[2:6, 10:14] = 3, 4
    return ids


@pytest.fixture
def root(tmp_path):
    coco = tmp_path / "coco"
    folders = [coco / name for name in ("val2017", "cocostuff_panoptic_val2017")]
    folders += [coco / "cocostuff_sem_seg_val2017", coco / "annotations"]
    for folder in folders:
        folder.mkdir(parents=True)
    ids = draw_segments()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folders[0] / "000000000007.jpg")
    colours = np.stack([ids % 256, ids // 256, 0 * ids], axis=2).astype(np.uint8)
    Image.fromarray(colours).save(folders[1] / "000000000007.png")
    labels = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    categories = {1: SKY, 300: GRASS, 3: PERSON, 4: PERSON}
    for segment_id, label in categories.items():
        labels[ids == segment_id] = CLASS_OF_LABEL[label]
    Image.fromarray(labels).save(folders[2] / "000000000007.png")
    content = {
        "images": [{"id": 7, "file_name": "000000000007.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {
                "image_id": 7,
                "file_name": "000000000007.png",
                "segments_info": [
                    {"id": k, "category_id": label, "iscrowd": 0} for k, label in categories.items()
                ],
            }
        ],
    }
    (folders[3] / "cocostuff_panoptic_val2017.json").write_text(json.dumps(content))
    register_coco_stuff(tmp_path)
    yield tmp_path
    register_coco_stuff(DEFAULT_ROOT)


def test_171_classes_and_the_gaps_between_their_labels():
    assert len(STUFF_LABELS) == 91
    assert set(range(1, 183)) - set(CLASS_OF_LABEL) == NEVER_ANNOTATED
    assert list(CLASS_OF_LABEL.values()) == list(range(171))
    assert [CLASS_OF_LABEL[k] for k in (1, 90, 92, 182)] == [0, 79, 80, 170]
    names = {92: "banner", 96: "building", 124: "grass", 149: "road", 157: "sky", 169: "tree"}
    names |= {171: "brick wall", 173: "wall", 181: "window", 182: "wood"}
    assert {k: COCO_STUFF_CLASSES[CLASS_OF_LABEL[k]] for k in names} == names
    assert len(set(COCO_STUFF_CLASSES)) == 171


def test_label_maps_hold_the_label_minus_one():
    label_map = np.array([[0, 89, 91], [181, 255, 12]], dtype=np.uint8)
    assert contiguous_labels(label_map, "x.png").tolist() == [[0, 79, 80], [170, 255, 11]]


@pytest.mark.parametrize("value", [11, 90, 182, 254])
def test_values_that_nobody_annotated_are_refused(value):
    with pytest.raises(ValueError, match=rf"x\.png has the values \[{value}\]"):
        contiguous_labels(np.array([[0, value]], dtype=np.uint8), "x.png")


def test_records_have_segments_and_labels(root):
    (record,) = DatasetCatalog.get(NAME)
    coco = root / "coco"
    assert record["file_name"] == str(coco / "val2017" / "000000000007.jpg")
    assert record["sem_seg_file_name"].endswith("cocostuff_sem_seg_val2017/000000000007.png")
    assert (record["image_id"], record["task"], record["dataset_name"]) == (7, "semantic", NAME)
    segments = [(s["category_id"], s["isthing"]) for s in record["segments_info"]]
    assert segments == [(145, False), (112, False), (0, True), (0, True)]


def test_each_thing_is_a_target_and_each_stuff_category_is_one(root):
    (record,) = DatasetCatalog.get(NAME)
    builder = SemanticTargetBuilder(size=20, max_counted_names=10)
    targets = builder.build(record, MetadataCatalog.get(NAME), np.random.default_rng(0))
    names = list(targets.instances.gt_category_names)
    assert names == ["person", "person", "sky", "grass"]
    masks = targets.instances.gt_masks.tensor
    assert masks.sum(dim=(1, 2)).tolist() == [32, 32, 5 * 40 - 48, 4 * 40 - 16]
    assert targets.ignore_mask[18:].all() and not targets.ignore_mask[:18].any()


def test_metadata(root):
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.image_source, metadata.ignore_label) == ("coco", 255)
    assert metadata.evaluator_type == "sem_seg"
    assert len(metadata.stuff_classes) == len(metadata.stuff_colors) == 171
    assert len(metadata.class_synonyms) == 171
    assert metadata.thing_classes == metadata.stuff_classes[:80]
    assert metadata.stuff_dataset_id_to_contiguous_id[182] == 170


def test_missing_files_are_named_with_the_command(root):
    with pytest.raises(FileNotFoundError, match="python datasets/prepare_coco_stuff.py"):
        DatasetCatalog.get("coco_2017_train_stuff_sem_seg")


def test_the_evaluator_accepts_the_ground_truth(root, tmp_path):
    cfg = get_cfg()
    add_rose_config(cfg)
    evaluator = build_evaluator(cfg, NAME, str(tmp_path / "out"))
    evaluator.reset()
    (record,) = DatasetCatalog.get(NAME)
    labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
    scores = torch.zeros(172, HEIGHT, WIDTH)
    scores.scatter_(0, labels.clamp(max=170)[None], 1.0)
    objects = load_objects(record)
    instances = Instances(
        (HEIGHT, WIDTH),
        pred_masks=objects.masks,
        pred_boxes=masks_to_boxes(objects.masks),
        scores=torch.ones(len(objects)),
        pred_classes=torch.tensor(objects.classes),
        pred_category_names=CategoryNames(COCO_STUFF_CLASSES[c] for c in objects.classes),
    )
    evaluator.process([record], [{"sem_seg": scores, "instances": instances}])
    results = evaluator.evaluate()
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    assert results["names"]["name_exact"] == 100


def test_the_visualizer_of_detectron2_draws_it(root):
    (record,) = DatasetCatalog.get(NAME)
    visualizer = Visualizer(np.zeros((HEIGHT, WIDTH, 3)), MetadataCatalog.get(NAME))
    assert visualizer.draw_dataset_dict(record).get_image().any()
