"""The one meaning a word has in an image."""

import pytest


def gloss(relations, *spellings):
    sense = relations.sense(spellings)
    return None if sense is None else relations._synset(sense).definition()


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("dogs", "dog"),
        ("Golden Retriever", "retriever"),
        ("table", "table"),  # not of data, its first sense
        ("crowd", "crowd"),  # not concrete, but visible
        ("kid", "child"),  # a person, first and attested
        ("mug", "mug"),  # the person is not attested
        ("guy", "guy"),
        ("fool", "fool"),  # nothing but a person
        ("cat", "cat"),
        ("crane", "crane"),  # not Stephen Crane
        ("plant", "plant"),  # not the works
        ("mouse", "device"),
        ("banana", "fruit"),  # not the plant
        ("rose", "bush"),  # not the wine
        ("poster", "poster"),  # not the horse
        ("street light", "street"),
        ("street-light", "street"),
        ("unheard", None),
        ("", None),
    ],
)
def test_each_word_has_one_sense(relations, word, meaning):
    assert gloss(relations, word) == meaning


def test_several_names_of_a_thing_agree_on_a_sense(relations):
    assert gloss(relations, "kid", "child") == "child"
    assert gloss(relations, "unheard", "sofa") == "couch"
    assert gloss(relations, "plant", "works") == "works"
