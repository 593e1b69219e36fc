import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rose_d2.data.datasets.registration import (
    BrokenAnnotations,
    DatasetEntry,
    register,
    registered_entries,
    strict_annotations,
    unregister,
)

NAME = "rose_test_registration"


@pytest.fixture
def entry(tmp_path):
    yield DatasetEntry(
        name=NAME,
        load=lambda: [{"file_name": "a.jpg", "task": "stale"}],
        metadata={"task": "instance", "evaluator_type": "coco"},
        files=(tmp_path / "images", tmp_path / "labels.json"),
        how_to_get="Run `python datasets/prepare_it.py`.",
        num_images=1,
    )
    unregister(NAME)


def test_the_first_missing_file_is_named_with_the_command_that_makes_it(entry, tmp_path):
    register(entry)
    with pytest.raises(FileNotFoundError, match=r"images is missing. Run `python datasets/prepare"):
        DatasetCatalog.get(NAME)
    (tmp_path / "images").mkdir()  # an empty folder holds no data set
    assert entry.missing_files() == [tmp_path / "images", tmp_path / "labels.json"]
    (tmp_path / "images" / "a.jpg").touch()
    with pytest.raises(FileNotFoundError, match="labels.json is missing"):
        DatasetCatalog.get(NAME)


def test_loaded_dicts_know_their_dataset_and_task(entry, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "labels.json").touch()
    register(entry)
    assert DatasetCatalog.get(NAME) == [
        {"file_name": "a.jpg", "dataset_name": NAME, "task": "instance"}
    ]


def test_a_registered_name_is_replaced(entry, tmp_path):
    register(entry)
    other = DatasetEntry(NAME, list, {"task": "semantic", "evaluator_type": "sem_seg"}, (), "")
    register(other)
    assert DatasetCatalog.get(NAME) == []
    assert MetadataCatalog.get(NAME).task == "semantic"
    assert registered_entries()[NAME] is other


def test_counts_are_reported_once_with_the_first_example(caplog):
    broken = BrokenAnnotations("instances.json")
    broken.add("annotations without a polygon", "annotation 3")
    broken.add("annotations without a polygon", "annotation 9")
    broken.add("annotations of a missing image", "annotation 4")
    with caplog.at_level(logging.WARNING):
        broken.report()
    assert [record.getMessage() for record in caplog.records] == [
        "instances.json: left out 2 annotations without a polygon (first: annotation 3); "
        "1 annotations of a missing image (first: annotation 4)."
    ]


def test_nothing_broken_is_not_mentioned(caplog):
    BrokenAnnotations("instances.json").report()
    assert not caplog.records


def test_strict_stops_at_the_first_one_and_only_there():
    broken = BrokenAnnotations("instances.json")
    with strict_annotations():
        with pytest.raises(ValueError, match="instances.json: annotations without.*annotation 3"):
            broken.add("annotations without a polygon", "annotation 3")
        with strict_annotations(False):
            broken.add("annotations without a polygon", "annotation 5")
    broken.add("annotations without a polygon", "annotation 6")
    assert broken.counts == {"annotations without a polygon": 2}
