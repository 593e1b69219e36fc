"""The readings of a name, down to its head noun."""

import pytest

from rose_d2.vocabulary.names import noun_phrases


@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        ("dog", ["dog"]),
        ("big red car", ["big red car", "red car", "car"]),
        ("man in a suit", ["man in a suit", "man"]),
        ("old man riding a horse", ["old man riding a horse", "old man", "man"]),
        ("tail of a dog", ["tail of a dog", "tail"]),
        ("pair of black shoes", ["pair of black shoes", "black shoes", "shoes"]),
        ("two groups of the people", ["two groups of the people", "people"]),
        ("slice of a piece of cake on a plate", ["slice of a piece of cake on a plate", "cake"]),
        ("glass of wine", ["glass of wine", "glass"]),
        ("of", ["of"]),
        ("pair of", ["pair of", "pair"]),
        ("", []),
    ],
)
def test_readings_get_shorter_down_to_the_head(name, phrases):
    assert [phrase.text for phrase in noun_phrases(name)] == phrases


def test_the_context_is_the_rest_of_the_name():
    whole, tail, head = noun_phrases("long tail of a dog")[:3]
    assert whole.context == ()
    assert tail == ("long tail", ("of", "a", "dog"))
    assert head == ("tail", ("long", "of", "a", "dog"))
