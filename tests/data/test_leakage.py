import logging
import os
import pickle

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from rose_d2.data import leakage
from rose_d2.data.datasets.refcoco import register_refer
from rose_d2.data.leakage import evaluation_images, exclude_evaluation_images
from rose_d2.synthetic.miniature_refer import write_refer

SPLITS = {
    "refcoco/refs(unc).p": {"train": [1, 2, 3], "val": [4], "testA": [5], "testB": [6]},
    # An image of several splits: objects are parted, not images.
    "refcoco/refs(google).p": {"train": [1, 2, 7], "val": [2, 8], "test": [2]},
    "refcocog/refs(umd).p": {"train": [4], "val": [3], "test": [9]},
    "refclef/refs(unc).p": {"train": [10], "val": [1], "testAB": [11], "testC": [12]},
}


def _references(splits):
    pairs = [(label, image_id) for label, image_ids in splits.items() for image_id in image_ids]
    return [
        {"ref_id": k, "ann_id": k, "image_id": image_id, "split": label, "sentences": []}
        for k, (label, image_id) in enumerate(pairs)
    ]


def _write(root, names=tuple(SPLITS)):
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(pickle.dumps(_references(SPLITS[name]), 2))
    register_refer(root)


@pytest.fixture(autouse=True)
def _restore_registrations():
    yield
    register_refer(os.environ.get("DETECTRON2_DATASETS", "datasets"))


@pytest.fixture
def metadata():
    """Metadata of a dataset on COCO images, or on others."""

    def make(source="coco"):
        known = {} if source is None else {"image_source": source}
        return Metadata(name="coco_2017_train", **known)

    return make


def _dicts(*image_ids):
    return [{"image_id": image_id, "number": k} for k, image_id in enumerate(image_ids)]


def test_images_of_every_evaluation_split_on_disk_are_known(tmp_path):
    _write(tmp_path)
    assert evaluation_images("coco") == {
        "refcoco_unc_val": {4},
        "refcoco_unc_testA": {5},
        "refcoco_unc_testB": {6},
        "refcoco_google_val": {2, 8},
        "refcoco_google_test": {2},
        "refcocog_umd_val": {3},
        "refcocog_umd_test": {9},
    }
    assert evaluation_images("saiapr") == {
        "refclef_unc_val": {1},
        "refclef_unc_testA": {11},
        "refclef_unc_testB": {11},
        "refclef_unc_testC": {12},
    }


def test_they_are_dropped_and_counted(tmp_path, metadata, caplog):
    _write(tmp_path)
    dicts = _dicts(1, 2, 2, 3, 4, 5, 9, 9, 9, 10)
    with caplog.at_level(logging.INFO, "rose_d2.data.leakage"):
        kept, counts = exclude_evaluation_images(dicts, metadata())
    assert kept == [dicts[0], dicts[9]]
    assert counts == {
        "refcoco_unc_val": 1,
        "refcoco_unc_testA": 1,
        "refcoco_unc_testB": 0,
        "refcoco_google_val": 2,
        "refcoco_google_test": 2,
        "refcocog_umd_val": 1,
        "refcocog_umd_test": 3,
    }
    (message,) = caplog.messages
    assert message.startswith("coco_2017_train: left out 8 of 10 items, which show evaluation im")
    assert "refcoco_google_val (2), " in message
    # The caller's list is untouched.
    assert len(dicts) == 10


def test_the_source_counts_not_the_number_alone(tmp_path, metadata):
    _write(tmp_path)
    dicts = _dicts(1, 4, 11, 12, 10)
    kept, _ = exclude_evaluation_images(dicts, metadata("saiapr"))
    assert [record["image_id"] for record in kept] == [4, 10]


def test_one_may_protect_only_some_benchmarks(tmp_path, metadata):
    _write(tmp_path)
    kept, counts = exclude_evaluation_images(
        _dicts(2, 3, 4, 9), metadata(), benchmarks=["refcoco_unc_val", "refcocog_umd_test"]
    )
    assert [record["image_id"] for record in kept] == [2, 3]
    assert counts == {"refcoco_unc_val": 1, "refcocog_umd_test": 1}
    with pytest.raises(ValueError, match="No referring evaluation dataset .* 'refcoco_unc_train'"):
        evaluation_images("coco", ["refcoco_unc_train"])


def test_datasets_on_other_images_pass(tmp_path, metadata, caplog):
    _write(tmp_path)
    dicts = _dicts(1, 4)
    with caplog.at_level(logging.INFO, "rose_d2.data.leakage"):
        kept, counts = exclude_evaluation_images(dicts, metadata(None))
    assert kept is dicts
    assert counts == {}
    assert not caplog.messages


def test_without_annotations_it_says_that_nothing_was_excluded(tmp_path, metadata, caplog):
    _write(tmp_path, ["refclef/refs(unc).p"])
    dicts = _dicts(1, 4)
    with caplog.at_level(logging.INFO, "rose_d2.data.leakage"):
        kept, counts = exclude_evaluation_images(dicts, metadata())
    assert (kept, counts) == (dicts, {})
    (message,) = caplog.messages
    assert message.startswith("coco_2017_train: referring evaluation images could not be excluded")


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    _write(tmp_path, ["refcoco/refs(unc).p"])
    read, real = [], leakage.read_references
    monkeypatch.setattr(leakage, "read_references", lambda path: read.append(path) or real(path))
    assert evaluation_images("coco") == evaluation_images("coco")
    assert len(read) == 1
    path = tmp_path / "refcoco" / "refs(unc).p"
    path.write_bytes(pickle.dumps(_references({"val": [99]}), 2))
    os.utime(path, ns=(1, 1))
    assert evaluation_images("coco")["refcoco_unc_val"] == {99}
    assert len(read) == 2


def test_a_hostile_pickle_stops_the_training(tmp_path, metadata):
    _write(tmp_path)
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="not a plain pickle"):
        exclude_evaluation_images(_dicts(1), metadata())


def test_every_miniature_training_set_keeps_its_unevaluated_images(tmp_path):
    write_refer(tmp_path, with_images=True)
    register_refer(tmp_path)
    kept_images = {}
    for name in ("refcoco_unc", "refcoco_google", "refcoco+_unc", "refcocog_umd", "refclef_unc"):
        dicts = DatasetCatalog.get(f"{name}_train")
        kept, _ = exclude_evaluation_images(dicts, MetadataCatalog.get(f"{name}_train"))
        kept_images[name] = sorted({record["image_id"] for record in kept})
        assert len(kept) < len(dicts) or name == "refclef_unc"
    assert kept_images == {
        "refcoco_unc": [101, 103],
        "refcoco_google": [101, 103],
        "refcoco+_unc": [101, 103],
        "refcocog_umd": [101, 103],
        "refclef_unc": [30101, 30102],
    }
