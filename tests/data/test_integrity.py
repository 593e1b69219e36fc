import json

import pytest
from detectron2.config import get_cfg
from scripts import load_script

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.registration import DatasetEntry, register, unregister

check_dataset = load_script("tools/check_data.py").check_dataset
NAME = "rose_test_integrity"


@pytest.fixture
def mapper():
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.MODEL.LMM.IMAGE_SIZE, cfg.MODEL.MASK_HEAD.IMAGE_SIZE = 20, 32
    return RoseDatasetMapper(cfg, is_train=True)


@pytest.fixture
def make_entry(scene, tmp_path):
    """An entry of four panoptic records; `images` is published as five."""

    def make(records=None, classes=("dog", "cat", "red car", "sky", "grass"), load=None):
        records = [dict(scene["panoptic"]) for _ in range(4)] if records is None else records
        entry = DatasetEntry(
            name=NAME,
            load=load or (lambda: records),
            metadata={
                "task": "panoptic",
                "evaluator_type": "coco_panoptic_seg",
                "stuff_classes": list(classes),
            },
            files=(tmp_path / "image.png", tmp_path / "panoptic.png"),
            how_to_get="Draw it.",
            num_images=5,
        )
        register(entry)
        return entry

    yield make
    unregister(NAME)


def test_a_sound_dataset_is_counted_and_opened(make_entry, mapper):
    report = check_dataset(make_entry(), mapper, num_samples=3)
    assert (report.status, report.num_images, report.num_items) == ("present", 1, 4)
    assert (report.num_opened, report.problems) == (3, [])


def test_more_samples_than_items_open_each_once(make_entry, mapper):
    assert check_dataset(make_entry(), mapper, num_samples=50).num_opened == 4


def test_some_or_no_files(make_entry, mapper, tmp_path):
    entry = make_entry()
    (tmp_path / "panoptic.png").unlink()
    report = check_dataset(entry, mapper, 3)
    assert (report.status, report.missing) == ("partial", [tmp_path / "panoptic.png"])
    (tmp_path / "image.png").unlink()
    assert check_dataset(entry, mapper, 3).status == "missing"


def test_an_item_that_cannot_be_used_is_named(make_entry, mapper, scene, tmp_path):
    records = [dict(scene["panoptic"]) for _ in range(3)]
    records[2]["file_name"] = str(tmp_path / "gone.jpg")
    report = check_dataset(make_entry(records), mapper, 3)
    assert (report.status, report.num_opened) == ("damaged", 2)
    assert "gone.jpg" in report.problems[0]


def test_annotations_that_cannot_be_read(make_entry, mapper):
    def fail():
        return json.loads("{")

    report = check_dataset(make_entry(load=fail), mapper, 3)
    assert report.status == "damaged"
    assert report.num_items is None
    empty = check_dataset(make_entry(records=[]), mapper, 3)
    assert (empty.status, empty.problems) == ("damaged", ["its annotation files list no item"])


def test_classes_beyond_the_metadata(make_entry, mapper):
    report = check_dataset(make_entry(classes=("dog", "cat")), mapper, 1)
    assert report.status == "damaged"
    assert "IndexError" in report.problems[0]
