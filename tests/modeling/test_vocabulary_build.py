"""A vocabulary with the rules the config asks for."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import Metadata

from rose_d2.config.defaults import add_rose_config
from rose_d2.vocabulary.text_embeddings import TextEmbeddingBank
from rose_d2.vocabulary.vocabulary import build_vocabulary

SPELLING = ("exact", "normalised", "synonym")
WORDNET = ("wordnet synonym", "hyponym", "hypernym", "part")


@pytest.fixture
def metadata():
    return Metadata(name="toys", evaluator_type="coco", thing_classes=["dog, hound", "red car"])


@pytest.fixture
def bank():
    return TextEmbeddingBank("ngram", 256)


def config(**keys):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.TEST.VOCABULARY.update({"WORDNET": "", **keys})
    return cfg


def test_levels_are_those_that_can_be_measured(metadata, bank, tiny_wordnet):
    assert build_vocabulary(config(), metadata).levels == SPELLING
    similar = build_vocabulary(config(SIMILARITY="name"), metadata, bank)
    assert similar.levels == (*SPELLING, "similarity") and not similar.wants_embeddings
    pytest.importorskip("nltk")
    keys = {"WORDNET": str(tiny_wordnet), "SIMILARITY": "predicted", "LEVEL": "part"}
    full = build_vocabulary(config(**keys), metadata, bank)
    assert full.levels == (*SPELLING, *WORDNET, "similarity") and full.wants_embeddings
    assert full.map_names(["poodle"]).rules == ["hyponym"]


def test_names_are_embedded_by_the_bank(metadata, bank):
    vocabulary = build_vocabulary(config(SIMILARITY="name", SIMILARITY_THRESH=0.7), metadata, bank)
    mapping = vocabulary.map_names(["red cart", "giraffe", "dog"])
    assert mapping.class_ids.tolist() == [1, -1, 0]
    assert mapping.rules == ["similarity", "unmapped", "exact"]


def test_the_threshold_is_read(metadata, bank):
    strict = config(SIMILARITY="name", SIMILARITY_THRESH=0.99)
    assert build_vocabulary(strict, metadata, bank).map_names(["red cart"]).rules == ["unmapped"]


def test_predicted_embeddings_are_compared_with_the_classes(metadata, bank):
    vocabulary = build_vocabulary(config(SIMILARITY="predicted"), metadata, bank)
    predicted = torch.stack([*bank(("red car",)), *bank(("dog",))])
    assert vocabulary.map_names(["xyz", "uvw"], predicted).class_ids.tolist() == [1, 0]
    with pytest.raises(ValueError, match="Got no embeddings"):
        vocabulary.map_names(["xyz"])


def test_a_dataset_without_classes_maps_nothing(bank):
    metadata = Metadata(name="refclef", evaluator_type="refcoco")
    vocabulary = build_vocabulary(config(SIMILARITY="name"), metadata, bank)
    assert vocabulary.map_names(["dog"]).rules == ["unmapped"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"LEVEL": "guess"}, "LEVEL is 'guess'; it is one of exact, normalised"),
        ({"LEVEL": "unmapped"}, "LEVEL is 'unmapped'"),
        ({"LEVEL": "hyponym"}, "only the levels exact, normalised, synonym .* needs WordNet: run"),
        ({"LEVEL": "similarity"}, "set TEST.VOCABULARY.SIMILARITY to name or predicted"),
        ({"SIMILARITY": "clip"}, "SIMILARITY is 'clip'; it is empty, name or predicted"),
        ({"SIMILARITY": "name"}, "no text embeddings here; give a TextEmbeddingBank"),
        ({"SIMILARITY": "name", "SIMILARITY_THRESH": 80.0}, "THRESH is 80.0; it is a cosine"),
        ({"WORDNET": "nowhere"}, "WORDNET is 'nowhere'"),
    ],
)
def test_what_cannot_be_done_is_said(metadata, keys, message):
    with pytest.raises(ValueError, match=message):
        build_vocabulary(config(**keys), metadata)
