import json
import math
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from toy_training import toy_config

from rose_d2.config.defaults import add_rose_config
from rose_d2.config.fingerprint import config_hash, file_sha256, library_versions
from rose_d2.reports.record import (
    LEVEL_WORDS,
    dataset_protocol,
    is_referring,
    level_in_words,
    measured_levels,
    run_record,
    write_record,
    write_results,
)
from rose_d2.vocabulary.vocabulary import MAPPING_RULES


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


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_rose_config(cfg)
    return cfg


def levels(*names):
    return {"segm": {"AP": 1.0}, "segm_levels": dict.fromkeys(names, 1.0)}


def test_every_rule_that_maps_has_words():
    assert set(MAPPING_RULES) - {"unmapped"} <= set(LEVEL_WORDS)


def test_levels_come_from_the_results_in_order():
    tasks = levels("exact", "normalised") | {"bbox_levels": {"exact": 1.0, "synonym": 2.0}}
    assert measured_levels(tasks) == ["exact", "normalised", "synonym"]
    assert measured_levels({"segm": {"AP": 1.0}}) == []


def test_wordnet_counts_as_used_where_its_levels_were_measured(cfg):
    without = dataset_protocol(cfg, levels("exact", "normalised", "synonym"))
    assert without["wordnet"] is False
    assert "WordNet was not used" in without["in_words"]
    used = dataset_protocol(cfg, levels("exact", "synonym", "hyponym"))
    assert used["wordnet"] is True
    assert "WordNet was used" in used["in_words"]


def test_headline_level_in_words(cfg):
    assert "up to the rule “synonym”" in dataset_protocol(cfg, levels("exact"))["in_words"]
    assert level_in_words("exact") == "only exact class names count"
    cfg.TEST.VOCABULARY.LEVEL = "part"
    assert dataset_protocol(cfg, levels("exact"))["headline_level"] == "part"


def test_similarity_and_its_threshold(cfg):
    assert dataset_protocol(cfg, levels("exact"))["similarity_threshold"] is None
    cfg.TEST.VOCABULARY.SIMILARITY, cfg.TEST.VOCABULARY.SIMILARITY_THRESH = "name", 0.75
    protocol = dataset_protocol(cfg, levels("exact", "similarity"))
    assert (protocol["similarity"], protocol["similarity_threshold"]) == ("name", 0.75)
    assert "cosine was at least 0.75" in protocol["in_words"]


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        ("", "Names were free: the model was given no class names."),
        ("prompt", "listed in the instruction; names were free"),
        ("decode", "decoded along the dataset's class names"),
        ("both", "listed in the instruction and names were decoded"),
    ],
)
def test_candidates(cfg, candidates, words):
    cfg.TEST.CANDIDATES = candidates
    assert words in dataset_protocol(cfg, levels("exact"))["in_words"]


def test_referring_says_its_protocol_and_nothing_of_names(cfg):
    tasks = {"referring": {"cIoU": 1.0}}
    assert is_referring(tasks)
    protocol = dataset_protocol(cfg, tasks)
    assert set(protocol) == {"referring_protocol", "multi_target", "refinement_box", "in_words"}
    assert "asked and scored alone" in protocol["in_words"]
    cfg.TEST.REFERRING.PROTOCOL = "per_ref"
    per_ref = dataset_protocol(cfg, {"referring_per_ref": {"cIoU": 1.0}})
    assert "not comparable with per-sentence numbers" in per_ref["in_words"]
