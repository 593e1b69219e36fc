"""Registration, loading, and that detectron2's evaluators score the ground truth as perfect."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from pycocotools import mask as mask_util

from rose_d2.data.datasets.builtin import DEFAULT_ROOT
from rose_d2.data.datasets.clipart import (
    ALL_NAMES,
    CATEGORY_IDS,
    COLORABLE_GLYPHS,
    COLORS,
    COMPARISON_NAME,
    HELD_OUT_NAMES,
    SPLITS,
    STUFF_NAMES,
    THING_BY_NAME,
    THING_NAMES,
    THINGS,
    coco_categories,
    dataset_name,
    load_clipart,
    register_clipart,
)
from rose_d2.data.datasets.refer_files import expression_kind
from rose_d2.synthetic.clipart import BenchmarkSettings, write_benchmark

TASKS = ("instance", "semantic", "panoptic", "referring")
NUM_THINGS = len(THING_NAMES)


def test_there_are_enough_different_lower_case_names():
    assert len(THING_NAMES) >= 60
    assert len(STUFF_NAMES) == 8
    assert len(set(ALL_NAMES)) == len(ALL_NAMES)
    assert all(name == name.lower().strip() for name in ALL_NAMES)


def test_no_two_things_look_the_same():
    looks = {(thing.glyph, thing.color) for thing in THINGS}
    assert len(looks) == len(THINGS)


def test_held_out_names_leave_every_object_and_color_for_training():
    held_out = [THING_BY_NAME[name] for name in HELD_OUT_NAMES]
    assert sorted(thing.object_name for thing in held_out) == sorted(COLORABLE_GLYPHS)
    seen = [
        thing for thing in THINGS if thing.color is not None and thing.name not in HELD_OUT_NAMES
    ]
    for color in COLORS:
        assert sum(thing.color == color for thing in seen) >= len(COLORABLE_GLYPHS) - 2


def test_ids_count_things_then_stuff_from_one():
    assert [CATEGORY_IDS[name] for name in ALL_NAMES] == list(range(1, len(ALL_NAMES) + 1))
    instances = coco_categories(with_stuff=False)
    panoptic = coco_categories(with_stuff=True)
    assert [c["name"] for c in instances] == list(THING_NAMES)
    assert [c["name"] for c in panoptic] == list(ALL_NAMES)
    assert [c["name"] for c in panoptic if not c["isthing"]] == list(STUFF_NAMES)
    red_car = next(c for c in instances if c["name"] == "red car")
    assert red_car["supercategory"] == "car"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A datasets folder with a small benchmark, registered for the tests of this file."""
    folder = tmp_path_factory.mktemp("datasets")
    write_benchmark(
        BenchmarkSettings(1, {"train": 3, "val": 4, "val_unseen": 2}), folder / "clipart"
    )
    register_clipart(folder)
    yield folder
    register_clipart(DEFAULT_ROOT)


def test_names_are_registered_on_import():
    assert {dataset_name(task, split) for task in TASKS for split in SPLITS} <= set(
        DatasetCatalog.list()
    )
    assert dataset_name("semantic", "val_unseen") == "clipart_sem_seg_val_unseen"
    assert dataset_name("referring", "train") == "clipart_refer_train"
    with pytest.raises(ValueError, match="'depth'.*instance, semantic"):
        dataset_name("depth", "val")


@pytest.mark.parametrize("task", TASKS)
def test_records_of_every_task(root, task):
    for split, images in zip(SPLITS, (3, 4, 2), strict=True):
        name = dataset_name(task, split)
        records = DatasetCatalog.get(name)
        assert len({record["image_id"] for record in records}) == images
        for record in records:
            assert (record["task"], record["dataset_name"]) == (task, name)
            with Image.open(record["file_name"]) as image:
                assert image.size == (record["width"], record["height"])
            with Image.open(record["pan_seg_file_name"]) as labels:
                assert labels.size == (record["width"], record["height"])
            for segment in record["segments_info"]:
                assert segment["isthing"] == (segment["category_id"] < NUM_THINGS)


def test_instances_have_contiguous_classes_and_their_masks(root):
    for record in load_clipart(root, "instance", "val"):
        things = [s["category_id"] for s in record["segments_info"] if s["isthing"]]
        assert [a["category_id"] for a in record["annotations"]] == things
        for annotation in record["annotations"]:
            mask = mask_util.decode(annotation["segmentation"])
            assert mask.shape == (record["height"], record["width"])
            assert annotation["bbox_mode"] == BoxMode.XYWH_ABS
            assert mask_util.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]


def test_semantic_labels_agree_with_the_segments(root):
    for record in load_clipart(root, "semantic", "val"):
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        assert set(np.unique(labels)) == {s["category_id"] for s in record["segments_info"]}


def test_a_name_alone_refers_to_the_object_of_that_name(root):
    records = load_clipart(root, "referring", "train")
    checked = 0
    for record in records:
        (target,) = record["target_indices"]
        name = THING_NAMES[record["annotations"][target]["category_id"]]
        if record["sentence"].removeprefix("the ") in THING_NAMES:
            checked += 1
            assert record["sentence"] == f"the {name}"
    assert checked
    assert len({(record["ref_id"], record["sent_id"]) for record in records}) == len(records)


def test_the_comparisons_are_the_training_expressions_by_position_or_size(root):
    everything = {
        (r["ref_id"], r["sent_id"]): r["sentence"] for r in load_clipart(root, "referring", "train")
    }
    comparisons = {
        (r["ref_id"], r["sent_id"]): r["sentence"] for r in DatasetCatalog.get(COMPARISON_NAME)
    }
    assert 0 < len(comparisons) < len(everything)
    for key, sentence in everything.items():
        is_comparison = expression_kind(sentence) in ("position", "size")
        assert (comparisons.get(key) == sentence) == is_comparison
    assert MetadataCatalog.get(COMPARISON_NAME).task == "referring"


def test_unseen_classes_are_told_and_kept_out_of_training(root):
    metadata = MetadataCatalog.get("clipart_instance_train")
    assert metadata.unseen_classes == list(HELD_OUT_NAMES)
    unseen = {THING_NAMES.index(name) for name in HELD_OUT_NAMES}
    for split in ("train", "val"):
        for record in load_clipart(root, "instance", split):
            assert not unseen & {a["category_id"] for a in record["annotations"]}
    for record in load_clipart(root, "instance", "val_unseen"):
        assert unseen & {a["category_id"] for a in record["annotations"]}


def test_registering_again_replaces_and_reads_nothing(root, tmp_path):
    register_clipart(tmp_path)
    register_clipart(tmp_path)
    assert str(tmp_path) in MetadataCatalog.get("clipart_instance_val").json_file
    register_clipart(root)
    assert str(root) in MetadataCatalog.get("clipart_instance_val").json_file


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_benchmark_is_one_clear_sentence(tmp_path, task):
    with pytest.raises(FileNotFoundError, match="python datasets/prepare_clipart.py --root"):
        load_clipart(tmp_path, task, "val")


def test_class_lists_are_in_the_order_of_the_labels(root):
    for task in ("semantic", "panoptic"):
        metadata = MetadataCatalog.get(dataset_name(task, "val"))
        assert metadata.stuff_classes == list(ALL_NAMES)
        assert metadata.thing_classes == list(THING_NAMES)
        assert len(metadata.stuff_colors) == len(ALL_NAMES)
        assert metadata.ignore_label == 255


def _perfect_instances(record):
    annotations = record["annotations"]
    instances = Instances((record["height"], record["width"]))
    masks = np.stack([mask_util.decode(a["segmentation"]) for a in annotations])
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    instances.pred_masks = torch.from_numpy(masks).bool()
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.scores = torch.ones(len(annotations))
    instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
    return {"instances": instances}


def _perfect_panoptic(record):
    colors = np.asarray(Image.open(record["pan_seg_file_name"])).astype(np.int32)
    ids = torch.from_numpy(colors @ np.asarray([1, 256, 65536], np.int32))
    segments = [dict(segment) for segment in record["segments_info"]]
    return {"panoptic_seg": (ids, segments)}


def _perfect_semantic(record):
    labels = torch.from_numpy(np.asarray(Image.open(record["sem_seg_file_name"])).astype(int))
    one_hot = torch.nn.functional.one_hot(labels, len(ALL_NAMES))
    return {"sem_seg": one_hot.permute(2, 0, 1).float()}


def _read_labels(path, dtype=None):
    return np.asarray(Image.open(path)).astype(dtype)


def test_ground_truth_scores_100_in_detectron2s_evaluators(root, tmp_path):
    output = str(tmp_path)
    cases = [
        (
            "instance",
            COCOEvaluator("clipart_instance_val", ("segm",), False, output, use_fast_impl=False),
            _perfect_instances,
            ("segm", "AP"),
        ),
        (
            "panoptic",
            COCOPanopticEvaluator("clipart_panoptic_val", output),
            _perfect_panoptic,
            ("panoptic_seg", "PQ"),
        ),
        (
            "semantic",
            SemSegEvaluator("clipart_sem_seg_val", False, sem_seg_loading_fn=_read_labels),
            _perfect_semantic,
            ("sem_seg", "mIoU"),
        ),
    ]
    for kind, evaluator, predict, (task, metric) in cases:
        evaluator.reset()
        for record in load_clipart(root, kind, "val"):
            evaluator.process([record], [predict(record)])
        assert evaluator.evaluate()[task][metric] == pytest.approx(100)
