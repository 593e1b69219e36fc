"""A hand-made COCO of one image, 20 x 30 pixels: sky above grass, two people, a crowd of dogs."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import print_instances_class_histogram
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from pycocotools import mask as coco_mask

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.datasets.builtin import DEFAULT_ROOT
from rose_d2.data.datasets.coco import (
    COCO_CLASSES,
    COCO_PANOPTIC_IDS,
    COCO_THING_IDS,
    load_coco_instances,
    load_coco_panoptic,
    register_coco,
)
from rose_d2.data.datasets.registration import strict_annotations
from rose_d2.data.scene_targets import InstanceTargetBuilder
from rose_d2.evaluation.build import build_evaluator
from rose_d2.evaluation.ground_truth import load_objects
from rose_d2.layers.masks import masks_to_boxes
from rose_d2.structures.category_names import CategoryNames

HEIGHT, WIDTH = 20, 30
PERSON, DOG, SKY, GRASS = 1, 18, 187, 193
CROWD_RUNS = [112, *[4, 16] * 9, 4, 304]  # rows 12-15 of columns 5-14
CONTENT = {
    "images": [
        {"id": 7, "file_name": "sub/7.jpeg", "height": 4, "width": 6},
        {"id": 8, "file_name": "8.png", "height": 5, "width": 5},
    ],
    "annotations": [
        {
            "image_id": 8,
            "file_name": "8.png",
            "segments_info": [{"id": 5, "category_id": 90, "iscrowd": 1}],
        },
        {
            "image_id": 7,
            "file_name": "7.png",
            "segments_info": [{"id": 1, "category_id": 3}, {"id": 70000, "category_id": 200}],
        },
    ],
}


def draw_segments():
    ids = np.full((HEIGHT, WIDTH), 500)
    ids[10:] = 70000
    ids[2:8, 2:8], ids[4:10, 20:26], ids[12:16, 5:15] = 11, 12, 13
    return ids


def list_annotations():
    second = coco_mask.encode(np.asfortranarray(draw_segments() == 12, dtype=np.uint8))
    code = {"size": [HEIGHT, WIDTH], "counts": second["counts"].decode("ascii")}
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    runs = {"size": [HEIGHT, WIDTH], "counts": CROWD_RUNS}
    rows = [(PERSON, square, [2, 2, 6, 6], 0), (PERSON, code, [20, 4, 6, 6], 0)]
    rows += [(DOG, runs, [5, 12, 10, 4], 1)]
    keys = ("category_id", "segmentation", "bbox", "iscrowd")
    return [
        {"id": 10 + k, "image_id": 7, "area": 36 + 4 * row[3], **dict(zip(keys, row, strict=True))}
        for k, row in enumerate(rows, start=1)
    ]


def write_json(path, annotations, categories=COCO_CATEGORIES[:80]):
    images = [{"id": 7, "file_name": "000000000007.jpg", "height": HEIGHT, "width": WIDTH}]
    images = [{**images[0], "id": 3, "file_name": "000000000003.jpg"}, *images]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_panoptic(coco):
    ids = draw_segments()
    (coco / "panoptic_val2017").mkdir()
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    Image.fromarray(colours).save(coco / "panoptic_val2017" / "000000000007.png")
    categories = {500: SKY, 70000: GRASS, 11: PERSON, 12: PERSON, 13: DOG}
    segments = [
        {"id": k, "category_id": c, "iscrowd": int(k == 13), "area": int((ids == k).sum())}
        for k, c in categories.items()
    ]
    annotation = {"image_id": 7, "file_name": "000000000007.png", "segments_info": segments}
    write_json(coco / "annotations" / "panoptic_val2017.json", [annotation], COCO_CATEGORIES)


@pytest.fixture
def root(tmp_path):
    """A datasets folder with the validation split of instances, registered."""
    coco = tmp_path / "coco"
    write_json(coco / "annotations" / "instances_val2017.json", list_annotations())
    (coco / "val2017").mkdir()
    for stem in ("000000000003", "000000000007"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(coco / "val2017" / f"{stem}.jpg")
    register_coco(tmp_path)
    yield tmp_path
    register_coco(DEFAULT_ROOT)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    return cfg


def test_ids_have_the_gaps_of_coco():
    assert set(range(1, 91)) - set(COCO_THING_IDS) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert [COCO_THING_IDS[k] for k in (1, 11, 13, 90)] == [0, 10, 11, 79]
    assert [COCO_PANOPTIC_IDS[k] for k in (90, 92, 200)] == [79, 80, 132]
    assert sorted(COCO_PANOPTIC_IDS.values()) == list(range(133)) == list(range(len(COCO_CLASSES)))
    names = {SKY: "sky", 171: "brick wall", 189: "table", 67: "dining table", 72: "tv"}
    assert {k: COCO_CLASSES[COCO_PANOPTIC_IDS[k]] for k in names} == names


def test_sound_annotations_are_those_of_detectron2(root):
    path = root / "coco" / "annotations" / "instances_val2017.json"
    expected = load_coco_json(str(path), "pictures")
    for record in expected:
        for annotation in record["annotations"]:
            annotation["category_id"] = COCO_THING_IDS[annotation["category_id"]]
    for annotation, listed in zip(expected[1]["annotations"], list_annotations(), strict=True):
        annotation["area"] = listed["area"]
        if isinstance(annotation["segmentation"], dict):
            annotation["segmentation"]["size"] = list(annotation["segmentation"]["size"])
    assert load_coco_instances(path, "pictures", COCO_THING_IDS) == expected
    assert [len(record["annotations"]) for record in expected] == [0, 3]


def test_crowd_runs_become_their_region(root):
    crowd = DatasetCatalog.get("coco_2017_val")[1]["annotations"][2]
    assert (crowd["iscrowd"], crowd["category_id"]) == (1, 16)
    assert np.array_equal(coco_mask.decode(crowd["segmentation"]), draw_segments() == 13)


def break_annotations():
    good = list_annotations()
    first = good[0]
    bad = [
        {"segmentation": []},
        {"segmentation": [[1, 1, 2, 2]]},
        {"image_id": 99},
        {"category_id": 12},
        {"segmentation": {"size": [30, 20], "counts": [600]}},
        {"bbox": [], "segmentation": None},
    ]
    return good + [{**first, "id": 20 + k, **change} for k, change in enumerate(bad)]


def test_broken_annotations_are_left_out_and_counted_once(tmp_path, caplog):
    path = write_json(tmp_path / "broken.json", break_annotations())
    with caplog.at_level(logging.WARNING):
        records = load_coco_instances(path, "pictures", COCO_THING_IDS)
    assert [len(record["annotations"]) for record in records] == [0, 3]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "2 annotations with a box but no mask (first: annotation 20 of image 7)" in message
    assert "1 annotations of an image that is not listed" in message
    assert "annotation 23 of image 7, category 12" in message
    assert "1 annotations whose mask has another size" in message
    assert "1 annotations without a mask (first: annotation 25 of image 7)" in message


def test_broken_annotations_are_fatal_when_strict(tmp_path):
    path = write_json(tmp_path / "broken.json", break_annotations())
    with strict_annotations(), pytest.raises(ValueError, match="annotation 22 of image 99"):
        load_coco_instances(path, "pictures", COCO_THING_IDS)


def test_detectron2s_registrations_are_replaced(root):
    metadata = MetadataCatalog.get("coco_2017_val")
    assert metadata.json_file == str(root / "coco" / "annotations" / "instances_val2017.json")
    assert (metadata.task, metadata.image_source) == ("instance", "coco")
    assert len(metadata.thing_classes) == len(metadata.class_synonyms) == 80
    panoptic = MetadataCatalog.get("coco_2017_train_panoptic")
    assert len(panoptic.stuff_classes) == len(panoptic.class_synonyms) == 133
    assert panoptic.thing_classes == panoptic.stuff_classes[:80]


def test_missing_files_are_named_with_what_to_do(root):
    with pytest.raises(FileNotFoundError, match=r"train2017 is missing.*download\.py coco"):
        DatasetCatalog.get("coco_2017_train")
    with pytest.raises(FileNotFoundError, match="panoptic_val2017.json is missing"):
        DatasetCatalog.get("coco_2017_val_panoptic")


def test_instances_work_without_panoptic_files(root):
    record = DatasetCatalog.get("coco_2017_val")[1]
    assert "segments_info" not in record
    assert (record["task"], record["dataset_name"]) == ("instance", "coco_2017_val")
    targets = build_targets(record)
    assert targets.negative_points.shape == (0, 2)


def build_targets(record):
    builder = InstanceTargetBuilder(size=60, max_counted_names=10)
    metadata = MetadataCatalog.get("coco_2017_val")
    return builder.build(record, metadata, np.random.default_rng(0))


def test_stuff_is_negative_where_panoptic_files_are(root):
    write_panoptic(root / "coco")
    without, record = DatasetCatalog.get("coco_2017_val")
    assert "segments_info" not in without
    targets = build_targets(record)
    assert list(targets.instances.gt_category_names) == ["person", "person"]
    assert targets.conversation.response.startswith("There are 2 person")
    # One point in the sky and one in the grass: rows scale by 3, columns by 2.
    assert sorted(y > 30 for _, y in targets.negative_points.tolist()) == [False, True]
    expected = np.zeros((60, 60), dtype=bool)
    expected[36:48, 10:30] = True
    assert np.array_equal(targets.ignore_mask.numpy(), expected)


def test_detectron2s_tools_work_on_instances(root, caplog):
    write_panoptic(root / "coco")
    records = DatasetCatalog.get("coco_2017_val")
    metadata = MetadataCatalog.get("coco_2017_val")
    with caplog.at_level(logging.INFO):
        print_instances_class_histogram(records, metadata.thing_classes)
    assert "person" in caplog.text
    drawn = Visualizer(np.zeros((HEIGHT, WIDTH, 3)), metadata).draw_dataset_dict(records[1])
    assert drawn.get_image().any()


def perfect_output(record, names):
    objects = load_objects(record)
    output = {
        "instances": Instances(
            (HEIGHT, WIDTH),
            pred_masks=objects.masks,
            pred_boxes=masks_to_boxes(objects.masks),
            scores=torch.ones(len(objects)),
            pred_classes=torch.tensor(objects.classes, dtype=torch.long),
            pred_category_names=CategoryNames(names[c] for c in objects.classes),
        )
    }
    if "annotations" not in record:
        ids = torch.from_numpy(draw_segments()).int()
        kept = [s for s in copy.deepcopy(record["segments_info"]) if not s["iscrowd"]]
        segments = [s | {"category_name": names[s["category_id"]], "score": 1.0} for s in kept]
        output["panoptic_seg"] = (ids, segments)
    return output


@pytest.mark.parametrize(
    ("name", "task", "metric"),
    [("coco_2017_val", "segm", "AP"), ("coco_2017_val_panoptic", "panoptic_seg", "PQ")],
)
def test_the_evaluators_accept_the_ground_truth(root, cfg, name, task, metric):
    write_panoptic(root / "coco")
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [perfect_output(record, COCO_CLASSES)])
    results = evaluator.evaluate()
    assert results[task][metric] == pytest.approx(100)
    assert results["names"]["name_exact"] == 100


def _load(tmp_path, content):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    return load_coco_panoptic(path, "pictures", "labels", {3: 0, 90: 1}, {3: 9, 200: 2})


def test_records_have_sizes_paths_and_contiguous_ids(tmp_path):
    first, second = _load(tmp_path, CONTENT)
    assert second == {
        "file_name": "pictures/sub/7.jpeg",
        "image_id": 7,
        "height": 4,
        "width": 6,
        "pan_seg_file_name": "labels/7.png",
        "segments_info": [
            {"id": 1, "category_id": 0, "iscrowd": 0, "isthing": True},
            {"id": 70000, "category_id": 2, "iscrowd": 0, "isthing": False},
        ],
    }
    assert first["file_name"] == "pictures/8.png"
    assert first["segments_info"][0] == {"id": 5, "category_id": 1, "iscrowd": 1, "isthing": True}


def test_unknown_categories_and_images_are_named(tmp_path):
    segment = {"id": 1, "category_id": 4}
    annotation = {"image_id": 7, "file_name": "7.png", "segments_info": [segment]}
    with pytest.raises(ValueError, match="category 4"):
        _load(tmp_path, CONTENT | {"annotations": [annotation]})
    with pytest.raises(ValueError, match="image 99"):
        _load(tmp_path, CONTENT | {"annotations": [annotation | {"image_id": 99}]})
