"""The miniature ADE20K, prepared: metadata, loading, targets, evaluators on the ground truth."""

import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import print_instances_class_histogram
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.ade20k import (
    CLASS_NAMES,
    STUFF_IDS,
    THING_IDS,
    dataset_name,
    register_ade20k,
)
from rose_d2.data.datasets.builtin import DEFAULT_ROOT
from rose_d2.data.image_io import read_image
from rose_d2.data.scene_targets import InstanceTargetBuilder, SemanticTargetBuilder
from rose_d2.evaluation.build import build_evaluator
from rose_d2.evaluation.ground_truth import load_objects
from rose_d2.layers.masks import masks_to_boxes
from rose_d2.prepare.preparation import run_preparation
from rose_d2.structures.category_names import CategoryNames
from rose_d2.synthetic.miniature_dense import write_ade20k

TASKS = ("semantic", "panoptic", "instance")
SCRIPT_FOLDER = Path(__file__).parents[3] / "datasets"
IMAGE_COUNTS = {"train": 6, "val": 3}
VIEW = 84


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A datasets folder with the prepared miniature, registered for the tests of this file."""
    folder = tmp_path_factory.mktemp("datasets")
    write_ade20k(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT_FOLDER)
        script = importlib.import_module("prepare_ade20k")
        arguments = ["--root", str(folder), "--num-workers", "1"]
        assert run_preparation(script.main, script.build_parser(), arguments) == 0
    register_ade20k(folder)
    yield folder
    register_ade20k(DEFAULT_ROOT)


def test_a_hundred_things_and_fifty_kinds_of_stuff():
    assert len(CLASS_NAMES) == 150 and len(THING_IDS) == 100 and len(STUFF_IDS) == 50
    assert [CLASS_NAMES[i] for i in THING_IDS[:3]] == ["bed", "window", "cabinet"]
    assert [CLASS_NAMES[i] for i in STUFF_IDS[-3:]] == ["pier", "crt screen", "shower"]
    assert (CLASS_NAMES[12], CLASS_NAMES[149]) == ("person", "flag")


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_metadata_counts_classes_as_the_label_pngs_do(root, task):
    metadata = MetadataCatalog.get(dataset_name(task, "val"))
    assert metadata.task == task and metadata.ignore_label == 255
    assert metadata.stuff_classes == CLASS_NAMES and len(metadata.stuff_colors) == 150
    assert metadata.thing_dataset_id_to_contiguous_id == {i: i for i in THING_IDS}
    assert metadata.stuff_dataset_id_to_contiguous_id == {i: i for i in range(150)}
    assert [i for i, name in enumerate(metadata.thing_classes) if name] == list(THING_IDS)
    assert metadata.class_synonyms[6] == ["road", "route"]


def test_instance_metadata_counts_things_first(root):
    metadata = MetadataCatalog.get("ade20k_instance_train")
    assert (metadata.evaluator_type, metadata.task) == ("coco", "instance")
    assert metadata.thing_classes == [CLASS_NAMES[i] for i in THING_IDS]
    assert metadata.thing_dataset_id_to_contiguous_id == {i: k for k, i in enumerate(THING_IDS)}
    assert [names[0] for names in metadata.class_synonyms] == metadata.thing_classes
    assert len(metadata.thing_colors) == 100
    assert metadata.stuff_classes[:100] == metadata.thing_classes
    assert metadata.stuff_classes[100:] == [CLASS_NAMES[i] for i in STUFF_IDS]


def test_registration_reads_nothing_and_a_missing_dataset_says_how_to_get_it(root, tmp_path):
    register_ade20k(tmp_path)
    try:
        with pytest.raises(FileNotFoundError, match="prepare_ade20k.py --root") as error:
            DatasetCatalog.get("ade20k_sem_seg_val")
        assert str(tmp_path / "ADEChallengeData2016" / "images" / "validation") in str(error.value)
    finally:
        register_ade20k(root)


@pytest.mark.parametrize("split", IMAGE_COUNTS)
@pytest.mark.parametrize("task", TASKS)
def test_records_of_every_task(root, task, split):
    name = dataset_name(task, split)
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    assert [record["image_id"] for record in records] == list(range(1, IMAGE_COUNTS[split] + 1))
    for record in records:
        assert (record["task"], record["dataset_name"]) == (task, name)
        size = record["height"], record["width"]
        assert read_image(record["file_name"]).shape == (*size, 3)
        assert np.asarray(Image.open(record["pan_seg_file_name"])).shape[:2] == size
        things = set(metadata.thing_dataset_id_to_contiguous_id.values())
        for segment in record["segments_info"]:
            assert segment["isthing"] == (segment["category_id"] in things)
        if task == "instance":
            counts = Counter(annotation["category_id"] for annotation in record["annotations"])
            segments = [s["category_id"] for s in record["segments_info"] if s["isthing"]]
            assert counts == Counter(segments)


def test_labels_and_segments_agree_where_both_know(root):
    """Instances may reach over the edge of their class, and things may lack an instance."""
    for record in DatasetCatalog.get("ade20k_sem_seg_train"):
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        ids = np.asarray(Image.open(record["pan_seg_file_name"]))[..., 0]
        for segment in record["segments_info"]:
            inside = Counter(labels[ids == segment["id"]].tolist())
            assert inside.most_common(1)[0][0] == segment["category_id"]
            if not segment["isthing"]:
                assert set(inside) == {segment["category_id"]}
        missing = set(np.unique(labels[ids == 0]).tolist()) - {255}
        assert missing <= set(THING_IDS)


def test_each_thing_by_itself_and_each_stuff_class_once(root):
    """The fourth training scene: two castles (one region of building), a wall, single things."""
    record = DatasetCatalog.get("ade20k_sem_seg_train")[3]
    builder = SemanticTargetBuilder(size=VIEW, max_counted_names=10)
    metadata = MetadataCatalog.get("ade20k_sem_seg_train")
    targets = builder.build(record, metadata, np.random.default_rng(0))
    names = Counter(targets.instances.gt_category_names)
    assert names == {"wall": 1, "building": 1, "animal": 2, "food": 1, "book": 1}
    stuff = targets.instances.gt_is_stuff.tolist()
    expected = [name in ("wall", "building") for name in targets.instances.gt_category_names]
    assert stuff == expected
    assert targets.conversation.response == (
        "There are 1 wall, 1 building, 1 book, 1 food, 2 animal in this image."
    )
    assert len(targets.negative_points) == 0
    assert targets.ignore_mask[-1].all()  # the unlabelled rows at the bottom


def test_stuff_is_negative_in_instance_data(root):
    record = DatasetCatalog.get("ade20k_instance_train")[3]
    builder = InstanceTargetBuilder(size=VIEW, max_counted_names=10)
    metadata = MetadataCatalog.get("ade20k_instance_train")
    targets = builder.build(record, metadata, np.random.default_rng(0))
    assert Counter(targets.instances.gt_category_names) == {"animal": 2, "food": 1, "book": 1}
    assert len(targets.negative_points) == 2  # wall and building


def test_the_mapper_takes_grey_and_cmyk_pictures(root, cfg):
    mapper = RoseDatasetMapper(cfg, True)
    for record in DatasetCatalog.get("ade20k_sem_seg_train")[1:3]:
        mapped = mapper(record, np.random.default_rng(0))
        assert mapped["image"].shape == (3, VIEW, VIEW) and len(mapped["instances"]) > 0


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.MODEL.LMM.IMAGE_SIZE = VIEW
    return cfg


def perfect_output(record, names):
    """The ground truth in the model's output format."""
    objects = load_objects(record)
    count, size = len(objects), (record["height"], record["width"])
    instances = Instances(
        size,
        pred_masks=objects.masks,
        pred_boxes=masks_to_boxes(objects.masks),
        scores=torch.linspace(0.9, 0.8, count),
        pred_classes=torch.tensor(objects.classes, dtype=torch.long),
        pred_category_names=CategoryNames([names[k] for k in objects.classes]),
    )
    output = {"instances": instances}
    if "sem_seg_file_name" in record:
        labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
        known = labels.clamp(max=len(names))  # 255 becomes the channel of no object
        scores = torch.zeros(len(names) + 1, *size)
        output["sem_seg"] = scores.scatter_(0, known[None], 1.0)
    elif "annotations" not in record:
        ids = np.array(Image.open(record["pan_seg_file_name"]))[..., 0].astype(np.int32)
        segments = [dict(s, category_name="", score=0.9) for s in record["segments_info"]]
        output["panoptic_seg"] = (torch.from_numpy(ids), segments)
    return output


@pytest.mark.parametrize(
    ("task", "headline"),
    [
        ("semantic", ("sem_seg", "mIoU")),
        ("panoptic", ("panoptic_seg", "PQ")),
        ("instance", ("segm", "AP")),
    ],
)
def test_the_ground_truth_scores_a_hundred(root, cfg, task, headline):
    name = dataset_name(task, "val")
    metadata = MetadataCatalog.get(name)
    names = metadata.thing_classes if task == "instance" else metadata.stuff_classes
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [perfect_output(record, names)])
    results = evaluator.evaluate()
    assert results[headline[0]][headline[1]] == pytest.approx(100)
    assert results["names"]["name_exact"] == 100


@pytest.mark.parametrize("task", TASKS)
def test_detectron2_draws_and_counts_the_dataset(root, task, capsys):
    name = dataset_name(task, "train")
    metadata = MetadataCatalog.get(name)
    record = DatasetCatalog.get(name)[3]
    drawn = Visualizer(read_image(record["file_name"]), metadata).draw_dataset_dict(record)
    assert drawn.get_image().shape[2] == 3
    if task == "instance":
        print_instances_class_histogram([record], metadata.thing_classes)
