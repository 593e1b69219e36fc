"""Names mapped to classes by WordNet, in the order of the rules."""

import pytest

from rose_d2.vocabulary.vocabulary import CategoryVocabulary


def vocabulary(relations, *names, **synonyms):
    return CategoryVocabulary(names, [True] * len(names), synonyms=synonyms, relations=relations)


def mapped(vocabulary, *names):
    ids, rules = vocabulary.map_names(names)
    return [
        (vocabulary.class_names[class_id] if class_id >= 0 else None, rule)
        for class_id, rule in zip(ids.tolist(), rules, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "class_name", "rule"),
    [
        ("Sofas", "couch", "wordnet synonym"),
        ("domestic dog", "dog", "wordnet synonym"),
        ("poodles", "dog", "hyponym"),
        ("big golden retriever", "dog", "hyponym"),
        ("big sofa", "couch", "hyponym"),
        ("red car", "car", "hyponym"),
        ("red parked cars", "car", "hyponym"),
        ("sedan in the street", "car", "hyponym"),
        ("pair of poodles", "dog", "hyponym"),
        ("kid", "person", "hyponym"),
        ("driver", "person", "hyponym"),
        ("human", "person", "hyponym"),
        ("hand", "person", "part"),
        ("edifice", "house", "hypernym"),
        ("roof", "house", "part"),
        ("roof of the house", "house", "part"),
        ("tail", "dog", "part"),
        ("hot dog", None, "unmapped"),
        ("mug", None, "unmapped"),
        ("entity", None, "unmapped"),
        ("artifact", None, "unmapped"),
        ("unheard thing", None, "unmapped"),
        ("", None, "unmapped"),
    ],
)
def test_each_rule_maps_what_it_should(relations, name, class_name, rule):
    classes = vocabulary(relations, "dog", "couch", "car", "person", "house")
    assert mapped(classes, name) == [(class_name, rule)]


def test_without_wordnet_no_lexical_rule_applies():
    classes = vocabulary(None, "dog", "car")
    assert mapped(classes, "poodle", "red car") == [(None, "unmapped")] * 2


def test_a_dataset_synonym_comes_before_wordnet(relations):
    classes = vocabulary(relations, "dog", "toy", toy=["poodle"])
    assert mapped(classes, "poodle", "toy poodle") == [("toy", "synonym"), ("toy", "hyponym")]


def test_the_nearest_class_above_wins_and_then_the_smaller_id(relations):
    assert mapped(vocabulary(relations, "animal", "dog"), "poodle") == [("dog", "hyponym")]
    assert mapped(vocabulary(relations, "primate", "person"), "human") == [("primate", "hyponym")]
    assert mapped(vocabulary(relations, "person", "primate"), "human") == [("person", "hyponym")]


def test_a_general_word_over_several_classes_is_ambiguous(relations):
    classes = vocabulary(relations, "car", "bus")
    assert mapped(classes, "vehicle", "wheel") == [(None, "unmapped")] * 2
    alone = vocabulary(relations, "dog", "car")
    assert mapped(alone, "vehicle", "wheel") == [("car", "hypernym"), ("car", "part")]
    nested = vocabulary(relations, "sedan", "car")
    assert mapped(nested, "vehicle") == [("car", "hypernym")]


def test_the_rest_of_the_name_may_say_which(relations):
    classes = vocabulary(relations, "car", "bus", "dog", "cat")
    names = ("wheel of a bus", "car wheel", "dog's tail", "tail of the cat", "wheel of a dog")
    classes_named = ["bus", "car", "dog", "cat", None]
    assert [name for name, _ in mapped(classes, *names)] == classes_named


def test_other_senses_of_a_class_do_not_count(relations):
    classes = vocabulary(relations, "cat", "person")
    assert mapped(classes, "guy") == [("person", "hyponym")]
    assert mapped(vocabulary(relations, "table"), "dining table") == [("table", "hyponym")]
    assert mapped(vocabulary(relations, "dining table"), "table") == [("dining table", "hypernym")]


def test_a_class_wordnet_does_not_know_is_a_kind_of_its_head(relations):
    classes = vocabulary(relations, "potted plant", "table lamp")
    assert mapped(classes, "plant", "lamp", "flora", "streetlight") == [
        ("potted plant", "hypernym"),
        ("table lamp", "hypernym"),
        ("potted plant", "hypernym"),
        (None, "unmapped"),
    ]
