"""A vocabulary with the rules the config asks for."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import Metadata

from rose_d2.config.defaults import add_rose_config
from rose_d2.vocabulary.text_embeddings import ClassSimilarity, TextEmbeddingBank
from rose_d2.vocabulary.vocabulary import (
    LEVELS,
    MAPPING_RULES,
    CategoryVocabulary,
    VocabularySettings,
    build_vocabulary,
    counts_at,
)

SPELLING = ("exact", "normalised", "synonym")
WORDNET = ("wordnet synonym", "hyponym", "hypernym", "part")


@pytest.fixture
def vocabulary():
    names = ["person", "stop sign", "building, edifice, tall house", "glasses", "grass"]
    return CategoryVocabulary(names, [True] * 4 + [False], synonyms={"person": ["pedestrian"]})


@pytest.mark.parametrize(
    ("name", "class_id", "rule"),
    [
        ("person", 0, "exact"),
        ("building", 2, "exact"),
        ("building, edifice, tall house", 2, "exact"),
        ("People", 0, "normalised"),
        ("the stop-signs.", 1, "normalised"),
        ("glass", 3, "normalised"),
        ("Grass", 4, "normalised"),
        ("edifices", 2, "synonym"),
        ("a Tall House", 2, "synonym"),
        ("pedestrian", 0, "synonym"),
        ("zebra", -1, "unmapped"),
        ("", -1, "unmapped"),
        ("stop", -1, "unmapped"),
    ],
)
def test_each_rule_maps_what_it_should(vocabulary, name, class_id, rule):
    mapping = vocabulary.map_names([name])
    assert (mapping.class_ids.tolist(), mapping.rules) == ([class_id], [rule])


def test_mapping_unpacks_and_keeps_the_order(vocabulary):
    class_ids, rules = vocabulary.map_names(["zebra", "grass", "person"])
    assert class_ids.dtype == torch.long and class_ids.tolist() == [-1, 4, 0]
    assert rules == ["unmapped", "exact", "exact"]
    assert vocabulary.map_names([]).class_ids.shape == (0,)


def test_a_class_spelled_in_the_singular_wins_over_the_singular_of_another():
    vocabulary = CategoryVocabulary(["glasses", "glass"], [True, True])
    assert vocabulary.map_names(["Glass", "Glasses"]).class_ids.tolist() == [1, 0]


def test_an_earlier_rule_wins_over_an_earlier_class():
    vocabulary = CategoryVocabulary(["door, screen", "Screen"], [True, True])
    assert vocabulary.map_names(["screen"]) == (torch.tensor([1]), ["normalised"])


def test_thing_flags_and_length(vocabulary):
    assert len(vocabulary) == 5
    assert vocabulary.is_thing == [True, True, True, True, False]
    assert vocabulary.class_names[2] == "building"


def _similarity(threshold):
    embeddings = {"zebra": [1.0, 0.1], "tree": [-1.0, -1.0]}
    return ClassSimilarity(
        bank=torch.tensor([[2.0, 0.0], [0.0, 3.0]]),
        threshold=threshold,
        embed_names=lambda names: torch.tensor([embeddings[name] for name in names]),
    )


def test_similarity_maps_only_the_rest_and_only_above_its_threshold():
    vocabulary = CategoryVocabulary(["horse", "car"], [True, True], similarity=_similarity(0.9))
    class_ids, rules = vocabulary.map_names(["Car", "zebra", "tree"])
    assert class_ids.tolist() == [1, 0, -1]
    assert rules == ["normalised", "similarity", "unmapped"]
    strict = CategoryVocabulary(["horse", "car"], [True, True], similarity=_similarity(0.999))
    assert strict.map_names(["zebra"]).rules == ["unmapped"]


def test_similarity_prefers_the_predicted_embeddings():
    vocabulary = CategoryVocabulary(["horse", "car"], [True, True], similarity=_similarity(0.9))
    predicted = torch.tensor([[9.0, 9.0], [0.0, 1.0]])
    assert vocabulary.map_names(["horse", "zebra"], predicted).class_ids.tolist() == [0, 1]


def test_similarity_without_any_embedding_says_so():
    similarity = ClassSimilarity(torch.eye(2), 0.5)
    vocabulary = CategoryVocabulary(["horse", "car"], [True, True], similarity=similarity)
    with pytest.raises(ValueError, match="embed_names"):
        vocabulary.map_names(["zebra"])


def test_bad_class_lists_are_refused():
    with pytest.raises(ValueError, match="2 class names but 1 thing flags"):
        CategoryVocabulary(["a", "b"], [True])
    with pytest.raises(ValueError, match="empty class name"):
        CategoryVocabulary(["a", " "], [True, True])
    with pytest.raises(ValueError, match="'zebra', which is not a class"):
        CategoryVocabulary(["horse"], [True], synonyms={"zebra": ["striped horse"]})


def test_instance_metadata_gives_things_only():
    metadata = Metadata(evaluator_type="coco", thing_classes=["dog", "cat"], stuff_classes=["sky"])
    vocabulary = CategoryVocabulary.from_metadata(metadata)
    assert vocabulary.class_names == ["dog", "cat"] and vocabulary.is_thing == [True, True]


def test_panoptic_metadata_gives_all_classes_with_flags():
    metadata = Metadata(
        evaluator_type="coco_panoptic_seg",
        thing_classes=["dog", "cat"],
        stuff_classes=["dog", "cat", "sky"],
        thing_dataset_id_to_contiguous_id={7: 0, 9: 1},
        class_synonyms=[["dog", "puppy"], [], ["sky"]],
    )
    vocabulary = CategoryVocabulary.from_metadata(metadata)
    assert vocabulary.is_thing == [True, True, False]
    assert vocabulary.map_names(["puppy", "sky"]).class_ids.tolist() == [0, 2]


def test_semantic_metadata_without_things_is_all_stuff():
    metadata = Metadata(evaluator_type="sem_seg", stuff_classes=["wall", "sky"])
    assert CategoryVocabulary.from_metadata(metadata).is_thing == [False, False]


def test_referring_metadata_may_have_no_classes():
    vocabulary = CategoryVocabulary.from_metadata(Metadata(evaluator_type="refcoco"))
    assert len(vocabulary) == 0
    assert vocabulary.map_names(["dog"]).class_ids.tolist() == [-1]
    named = CategoryVocabulary.from_metadata(
        Metadata(evaluator_type="refcoco", thing_classes=["dog"])
    )
    assert named.map_names(["dog"]).class_ids.tolist() == [0]


def test_metadata_without_classes_or_type_is_refused():
    with pytest.raises(ValueError, match="no thing_classes"):
        CategoryVocabulary.from_metadata(Metadata(evaluator_type="coco"))
    with pytest.raises(ValueError, match="'lvis'.*coco, sem_seg"):
        CategoryVocabulary.from_metadata(Metadata(evaluator_type="lvis", thing_classes=["dog"]))


@pytest.fixture
def metadata():
    return Metadata(name="toys", evaluator_type="coco", thing_classes=["dog, hound", "red car"])


@pytest.fixture
def bank():
    return TextEmbeddingBank("ngram", 256)


def settings(**keys):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.TEST.VOCABULARY.update({"WORDNET": "", **keys})
    return VocabularySettings.from_config(cfg)


def test_levels_are_those_that_can_be_measured(metadata, bank, tiny_wordnet):
    assert build_vocabulary(settings(), metadata).levels == SPELLING
    similar = build_vocabulary(settings(SIMILARITY="name"), metadata, bank)
    assert similar.levels == (*SPELLING, "similarity") and not similar.wants_embeddings
    pytest.importorskip("nltk")
    keys = {"WORDNET": str(tiny_wordnet), "SIMILARITY": "predicted", "LEVEL": "part"}
    full = build_vocabulary(settings(**keys), metadata, bank)
    assert full.levels == (*SPELLING, *WORDNET, "similarity") and full.wants_embeddings
    assert full.map_names(["poodle"]).rules == ["hyponym"]


def test_names_are_embedded_by_the_bank(metadata, bank):
    vocabulary = build_vocabulary(
        settings(SIMILARITY="name", SIMILARITY_THRESH=0.7), metadata, bank
    )
    mapping = vocabulary.map_names(["red cart", "giraffe", "dog"])
    assert mapping.class_ids.tolist() == [1, -1, 0]
    assert mapping.rules == ["similarity", "unmapped", "exact"]


def test_the_threshold_is_read(metadata, bank):
    strict = settings(SIMILARITY="name", SIMILARITY_THRESH=0.99)
    assert build_vocabulary(strict, metadata, bank).map_names(["red cart"]).rules == ["unmapped"]


def test_predicted_embeddings_are_compared_with_the_classes(metadata, bank):
    vocabulary = build_vocabulary(settings(SIMILARITY="predicted"), metadata, bank)
    predicted = torch.stack([*bank(("red car",)), *bank(("dog",))])
    assert vocabulary.map_names(["xyz", "uvw"], predicted).class_ids.tolist() == [1, 0]
    with pytest.raises(ValueError, match="Got no embeddings"):
        vocabulary.map_names(["xyz"])


def test_a_dataset_without_classes_maps_nothing(bank):
    metadata = Metadata(name="refclef", evaluator_type="refcoco")
    vocabulary = build_vocabulary(settings(SIMILARITY="name"), metadata, bank)
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
        build_vocabulary(settings(**keys), metadata)


def test_a_level_counts_its_rule_and_those_before_it():
    assert [rule for rule in MAPPING_RULES if counts_at(rule, "synonym")] == [
        *("exact", "normalised", "synonym")
    ]
    assert [counts_at("part", level) for level in LEVELS] == [False] * 6 + [True] * 2
    assert all(counts_at(rule, "similarity") for rule in LEVELS)
    assert not any(counts_at("unmapped", level) for level in LEVELS)


@pytest.mark.parametrize(("rule", "level"), [("guess", "exact"), ("exact", "unmapped")])
def test_unknown_rules_and_levels_are_refused(rule, level):
    with pytest.raises(ValueError, match="rules are exact, normalised.*every rule but the last"):
        counts_at(rule, level)
