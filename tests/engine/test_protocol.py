import pytest
from detectron2.config import get_cfg

from rose_d2.config.defaults import add_rose_config
from rose_d2.reports.record import (
    LEVEL_WORDS,
    dataset_protocol,
    is_referring,
    level_in_words,
    measured_levels,
)
from rose_d2.vocabulary.vocabulary import MAPPING_RULES


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
    assert set(protocol) == {"referring_protocol", "multi_target", "in_words"}
    assert "asked and scored alone" in protocol["in_words"]
    cfg.TEST.REFERRING.PROTOCOL = "per_ref"
    per_ref = dataset_protocol(cfg, {"referring_per_ref": {"cIoU": 1.0}})
    assert "not comparable with per-sentence numbers" in per_ref["in_words"]
