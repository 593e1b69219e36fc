import pytest

from rose_d2.vocabulary.names import normalise_name, singular_forms


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Dog", "dog"),
        ("  the  Stop-Sign. ", "stop sign"),
        ("an apple", "apple"),
        ("wall_brick", "wall brick"),
        ("men's hat", "mens hat"),
        ("Café", "cafe"),
        ("the", "the"),
        ("...", ""),
    ],
)
def test_normalised_spelling(name, expected):
    assert normalise_name(name) == expected


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("dogs", "dog"),
        ("red cars", "red car"),
        ("buses", "bus"),
        ("vases", "vase"),
        ("berries", "berry"),
        ("cookies", "cookie"),
        ("knives", "knife"),
        ("leaves", "leaf"),
        ("stoves", "stove"),
        ("people", "person"),
        ("firemen", "fireman"),
        ("skis", "ski"),
        ("wine glasses", "wine glass"),
    ],
)
def test_a_plural_offers_its_singular(plural, singular):
    assert singular in singular_forms(plural)


@pytest.mark.parametrize("word", ["grass", "bus", "tennis", "dog", "", "as"])
def test_a_singular_offers_nothing(word):
    assert singular_forms(word) == ()
