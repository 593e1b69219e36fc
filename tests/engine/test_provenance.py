import json
import math
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from toy_training import toy_config

from rose_d2.config.fingerprint import config_hash, file_sha256, library_versions
from rose_d2.reports.record import run_record, write_record, write_results


def test_hash_depends_on_what_is_computed_only(tmp_path):
    same = toy_config(tmp_path / "b", "DATALOADER.NUM_WORKERS", 7, "MODEL.WEIGHTS", "x")
    assert config_hash(toy_config(tmp_path / "a")) == config_hash(same)
    other = toy_config(tmp_path / "a", "SOLVER.BASE_LR", 0.1)
    assert config_hash(toy_config(tmp_path / "a")) != config_hash(other)


def test_file_sha256_is_the_known_value(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(str(tmp_path / "file")) == expected


def test_versions_name_the_main_libraries():
    assert {"python", "torch", "transformers"} <= set(library_versions())


@pytest.fixture
def dataset():
    """A registered dataset of three images."""
    name = "test_provenance"
    DatasetCatalog.register(name, lambda: [{"image_id": i} for i in range(3)])
    yield name
    DatasetCatalog.remove(name)


def test_hash_does_not_depend_on_keeping_predictions(tmp_path):
    keeping = toy_config(tmp_path, "TEST.SAVE_PREDICTIONS", True)
    assert config_hash(toy_config(tmp_path)) == config_hash(keeping)
    other_level = toy_config(tmp_path, "TEST.VOCABULARY.LEVEL", "exact")
    assert config_hash(toy_config(tmp_path)) != config_hash(other_level)


def test_versions_have_the_code_itself():
    assert {"rose_d2", "detectron2"} <= set(library_versions())


def test_results_file_says_all_and_is_the_same_twice(tmp_path, dataset):
    (tmp_path / "weights").write_bytes(b"abc")
    results = {dataset: {"segm": {"AP": np.float64(12.5), "APs": math.nan}}}
    cfg = toy_config(tmp_path / "run")
    path = write_results(cfg, results, str(tmp_path / "weights"))
    content = Path(path).read_bytes()
    assert Path(write_results(cfg, results, str(tmp_path / "weights"))).read_bytes() == content
    record = json.loads(content)
    assert record["results"] == {dataset: {"segm": {"AP": 12.5, "APs": None}}}
    assert record["dataset_sizes"] == {dataset: 3}
    assert record["checkpoint"]["sha256"].startswith("ba7816bf")
    assert record["config_hash"] == config_hash(cfg)
    assert record["protocol"][dataset]["headline_level"] == "synonym"
    assert [p.name for p in Path(path).parent.iterdir() if "results" in p.name] == ["results.json"]


def test_record_of_weights_that_are_not_here(tmp_path, dataset):
    record = run_record(toy_config(tmp_path), {dataset: {}}, None, "abc")
    assert record["checkpoint"] == {"path": None, "sha256": "abc"}
    path = write_record(record, str(tmp_path / "new" / "folder"))
    assert json.loads(Path(path).read_text()) == record
