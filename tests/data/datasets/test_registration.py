import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rose_d2.data.datasets.registration import (
    DatasetEntry,
    register,
    registered_entries,
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
