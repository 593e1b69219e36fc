"""The readings of a name, down to its head noun."""

import pytest
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, COCO_CATEGORIES

from rose_d2.data.datasets.coco import STUFF_LABELS
from rose_d2.data.datasets.mapillary_vistas import V1_2, V2_0
from rose_d2.vocabulary.names import (
    STYLES,
    clean_class_names,
    normalise_name,
    noun_phrases,
    singular_forms,
)


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


def clean(raw_name, style):
    return clean_class_names([raw_name], style).names[0]


@pytest.mark.parametrize(
    ("raw_name", "names"),
    [
        ("wall", ["wall"]),
        ("window ", ["window"]),
        ("road, route", ["road", "route"]),
        ("stairway;  staircase", ["stairway", "staircase"]),
        ("palm, palm tree", ["palm tree", "palm"]),
        ("falls", ["waterfall", "falls"]),
    ],
)
def test_ade20k_lists_become_a_name_and_its_synonyms(raw_name, names):
    cleaned = clean_class_names([raw_name], "ade20k")
    assert cleaned.names == names[:1] and cleaned.synonyms == [names]


@pytest.mark.parametrize(
    ("raw_name", "name"),
    [
        ("person", "person"),
        ("wall-brick", "brick wall"),
        ("wall-other-merged", "wall"),
        ("sky-other", "sky"),
        ("tree-merged", "tree"),
        ("mirror-stuff", "mirror"),
        ("window-blind", "window blind"),
        ("floor-wood", "wood floor"),
        ("ceiling-tile", "tile ceiling"),
        ("wall-panel", "paneled wall"),
        ("structural-other", "structure"),
        ("clouds", "cloud"),
        ("playingfield", "playing field"),
        ("hair drier", "hair drier"),
    ],
)
def test_coco_suffixes(raw_name, name):
    assert clean(raw_name, "coco") == name


def test_the_spelling_of_the_dataset_stays_a_synonym():
    assert clean_class_names(["wall-brick"], "coco").synonyms == [["brick wall", "wall brick"]]
    assert clean_class_names(["tree-merged"], "coco").synonyms == [["tree"]]
    barrier = clean_class_names(["construction--barrier--other-barrier"], "mapillary_vistas")
    assert barrier.synonyms == [["barrier", "other barrier"]]


@pytest.mark.parametrize(
    ("config_name", "readable", "name"),
    [
        ("animal--ground-animal", "Ground Animal", "ground animal"),
        ("construction--barrier--curb", "Curb", "curb"),
        ("construction--barrier--other-barrier", "Barrier", "barrier"),
        ("construction--barrier--temporary", "Temporary Barrier", "temporary barrier"),
        ("construction--flat--crosswalk-plain", "Crosswalk - Plain", "plain crosswalk"),
        ("human--person", "Person", "person"),
        ("human--person--individual", "Person", "person"),
        ("human--person--person-group", "Person Group", "person group"),
        ("marking--general", "Lane Marking - General", "lane marking"),
        ("marking--crosswalk-zebra", "Lane Marking - Crosswalk", "zebra crosswalk"),
        ("marking--discrete--crosswalk-zebra", "Lane Marking - Crosswalk", "zebra crosswalk"),
        ("marking--continuous--dashed", "Lane Marking - Dashed Line", "dashed lane marking"),
        ("marking--discrete--stop-line", "Lane Marking - Stop Line", "stop line"),
        (
            "marking--discrete--arrow--split-left-or-straight",
            "Lane Marking - Arrow (Split Left or Straight)",
            "left or straight arrow lane marking",
        ),
        (
            "marking-only--discrete--text",
            "Lane Marking (only) - Test",
            "text lane marking only",
        ),
        ("object--cctv-camera", "CCTV Camera", "cctv camera"),
        ("object--traffic-sign--front", "Traffic Sign (Front)", "traffic sign"),
        ("object--traffic-sign--back", "Traffic Sign (Back)", "traffic sign back"),
        (
            "object--traffic-sign--direction-back",
            "Traffic Sign - Direction (Back)",
            "direction sign back",
        ),
        ("object--sign--store", "Signage - Store", "store sign"),
        (
            "object--traffic-light--general-upright",
            "Traffic Light - General (Upright)",
            "upright traffic light",
        ),
        ("object--vehicle--other-vehicle", "Other Vehicle", "other vehicle"),
        ("object--vehicle--on-rails", "On Rails", "rail vehicle"),
        ("void--ego-vehicle", "Ego Vehicle", "ego vehicle"),
    ],
)
def test_mapillary_names_and_readable_names_give_the_same(config_name, readable, name):
    assert clean(config_name, "mapillary_vistas") == name
    assert clean(readable, "mapillary_vistas") == name


@pytest.mark.parametrize("style", STYLES)
def test_case_underscores_and_spaces_are_cleaned_in_every_style(style):
    assert clean("  Potted_Plant ", style) == "potted plant"


def test_plain_names_keep_their_commas_and_hyphens():
    assert clean("T-shirt, red", "plain") == "t-shirt, red"


def test_a_spelling_belongs_to_one_class_only():
    """A class's own name beats another's synonym; of two synonyms the first class keeps it."""
    raw_names = ["toilet, stool", "stool", "earth, ground", "land, ground"]
    cleaned = clean_class_names(raw_names, "ade20k")
    assert cleaned.names == ["toilet", "stool", "earth", "land"]
    assert cleaned.synonyms == [["toilet"], ["stool"], ["earth", "ground"], ["land"]]


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"'mirror' and 'mirror-stuff'.*'mirror'.*rename"):
        clean_class_names(["mirror", "sky-other", "mirror-stuff"], "coco")


@pytest.mark.parametrize("raw_name", ["", " ", "-other", "_"])
def test_an_empty_name_is_refused(raw_name):
    with pytest.raises(ValueError, match="Class 1 has the name"):
        clean_class_names(["dog", raw_name], "coco")


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="'lvis'.*ade20k, coco, mapillary_vistas, plain"):
        clean_class_names(["dog"], "lvis")


def assert_presentable(cleaned, count):
    assert len(set(cleaned.names)) == count
    for name in cleaned.names:
        assert name == " ".join(name.lower().split())
        assert not set(name) & set("-_,;()")
    spellings = [spelling for names in cleaned.synonyms for spelling in names]
    assert len(set(spellings)) == len(spellings)
    assert [names[0] for names in cleaned.synonyms] == cleaned.names


def test_the_150_classes_of_ade20k():
    cleaned = clean_class_names(ADE20K_SEM_SEG_CATEGORIES, "ade20k")
    assert_presentable(cleaned, 150)
    assert cleaned.names[:10:3] == ["wall", "floor", "road", "grass"]
    # "screen" is a class; "screen door" and "blind" name it as a synonym.
    assert [cleaned.synonyms[i] for i in (58, 63, 130)] == [["screen door"], ["blind"], ["screen"]]


def test_the_133_classes_of_coco_panoptic():
    names = [category["name"] for category in COCO_CATEGORIES]
    cleaned = clean_class_names(names, "coco")
    assert_presentable(cleaned, 133)
    assert cleaned.names[:80] == names[:80]


def test_the_171_classes_of_coco_stuff():
    things = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    cleaned = clean_class_names([*things, *STUFF_LABELS], "coco")
    assert_presentable(cleaned, 171)
    walls = [name for name in cleaned.names if "wall" in name.split()]
    assert walls == [
        "brick wall",
        "concrete wall",
        "wall",
        "paneled wall",
        "stone wall",
        "tile wall",
        "wood wall",
    ]


@pytest.mark.parametrize(("version", "count"), [(V1_2, 66), (V2_0, 124)])
def test_all_labels_of_mapillary_vistas(version, count):
    cleaned = clean_class_names([label.name for label in version.labels], "mapillary_vistas")
    assert_presentable(cleaned, count)
    assert cleaned.names[-1] == "unlabeled"
