"""What a user says about one region, and how its box is written."""

import random
import re

import numpy as np
import pytest

from rose_d2.prompts.instructions import (
    REFINEMENT_INSTRUCTIONS,
    REGION_INSTRUCTIONS,
    box_in_words,
    build_refinement_instruction,
    build_region_instruction,
    normalised_box,
)
from rose_d2.prompts.tokenizer import build_tokenizer
from rose_d2.structures.segments import SITUATIONS, RefinementRequest

BOX = (12, 30, 500, 999)
REQUESTS = {
    "mask": RefinementRequest("mask", BOX),
    "category": RefinementRequest("category", BOX, "red car"),
    "missed": RefinementRequest("missed", BOX),
}


def test_the_first_wordings_are_the_papers():
    where = " The target is in the box [12, 30, 500, 999]."
    assert {s: build_refinement_instruction(r) for s, r in REQUESTS.items()} == {
        "mask": (
            "This segmentation mask is incomplete, please ensure the entire object is captured."
            + where
        ),
        "category": (
            "The category of this segmentation result is wrongly predicted as red car, please "
            "correctify this." + where
        ),
        "missed": ("Please segment target region with mask and corresponding category." + where),
    }


def test_the_referring_request_comes_before_the_repair():
    request = RefinementRequest("mask", BOX, expression="the red car")
    assert build_refinement_instruction(request) == (
        "What is the red car in this image? Please output the segmentation mask. "
        "This segmentation mask is incomplete, please ensure the entire object is captured. "
        "The target is in the box [12, 30, 500, 999]."
    )
    drawn = {build_refinement_instruction(request, rng=random.Random(seed)) for seed in range(200)}
    assert len({text.split("the red car")[0] for text in drawn}) == 5
    assert len({text.split("the red car")[1] for text in drawn}) > 10


def test_thirty_wordings_each_with_the_box():
    assert tuple(REFINEMENT_INSTRUCTIONS) == SITUATIONS
    wordings = [w for situation in SITUATIONS for w in REFINEMENT_INSTRUCTIONS[situation]]
    assert [len(REFINEMENT_INSTRUCTIONS[s]) for s in SITUATIONS] == [10, 10, 10]
    assert len(set(wordings)) == 30
    for situation in SITUATIONS:
        for wording in REFINEMENT_INSTRUCTIONS[situation]:
            slots = ["box", "category"] if situation == "category" else ["box"]
            assert sorted(re.findall(r"\{(\w+)\}", wording)) == slots, wording


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("rng", [random.Random(0), np.random.default_rng(0)], ids=["py", "np"])
def test_every_wording_is_drawn(situation, rng):
    request = REQUESTS[situation]
    drawn = {build_refinement_instruction(request, rng=rng) for _ in range(300)}
    assert len(drawn) == 10
    assert all("[12, 30, 500, 999]" in text for text in drawn)
    assert all("{" not in text for text in drawn)
    assert all(("red car" in text) == (situation == "category") for text in drawn)


def test_region_prompts_name_the_box_or_speak_of_a_mask():
    assert build_region_instruction() == (
        "Please segment the region of the given mask and name its category."
    )
    assert build_region_instruction(BOX) == (
        "Please segment the region in the box [12, 30, 500, 999] and name its category."
    )
    rng = np.random.default_rng(0)
    by_mask = {build_region_instruction(rng=rng) for _ in range(200)}
    by_box = {build_region_instruction(BOX, rng=rng) for _ in range(200)}
    assert len(by_mask) == len(REGION_INSTRUCTIONS["mask"]) > 3
    assert len(by_box) == len(REGION_INSTRUCTIONS["box"]) > 3
    assert all("mask" in text and "[" not in text for text in by_mask)
    assert all("[12, 30, 500, 999]" in text for text in by_box)


def test_every_word_is_one_token_of_the_tiny_tokenizer():
    tokenizer = build_tokenizer("tiny")
    for wordings in (*REFINEMENT_INSTRUCTIONS.values(), *REGION_INSTRUCTIONS.values()):
        for wording in wordings:
            text = re.sub(r"\{\w+\}", "", wording)
            tokens = tokenizer.tokenize("\n" + text)
            words = re.findall(r"[A-Za-z]+", text)
            assert len([t for t in tokens if re.search("[A-Za-z]", t)]) == len(words), tokens


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (slice(0, 20), slice(0, 40), "[0, 0, 999, 999]"),
        # 10 of 40 columns from column 5: 5/40 and 15/40 of 999, rows 2/20 and 3/20.
        (slice(2, 3), slice(5, 15), "[125, 100, 375, 150]"),
        (slice(19, 20), slice(39, 40), "[974, 949, 999, 999]"),
    ],
)
def test_a_masks_box_in_words(rows, columns, words):
    mask = np.zeros((20, 40), dtype=bool)
    mask[rows, columns] = True
    assert box_in_words(mask, (20, 40)) == words
    box = (columns.start, rows.start, columns.stop, rows.stop)
    assert box_in_words(box, (20, 40)) == words


def test_the_box_spans_all_parts_of_a_mask():
    mask = np.zeros((10, 10), dtype=bool)
    mask[1, 8] = mask[6, 2] = True
    assert normalised_box(mask, 10) == (200, 100, 899, 699)


def test_a_users_box_may_be_fractional_and_is_cut_at_the_border():
    assert normalised_box((-5.0, 2.5, 5.5, 99.0), (10, 20)) == (0, 250, 275, 999)
    assert all(isinstance(edge, int) for edge in normalised_box(np.array([1, 2, 3, 4]), 10))


@pytest.mark.parametrize(
    ("region", "size", "message"),
    [
        (np.zeros((10, 10), dtype=bool), 10, "without any pixel"),
        (np.ones((10, 12), dtype=bool), 10, "bring the mask to the size"),
        ((5, 5, 5, 8), 10, "no area"),
        ((8, 5, 5, 8), 10, "no area"),
        ((10, 0, 12, 8), 10, "no area inside"),
        ((float("nan"), 0, 2, 2), 10, "no area"),
        ((1, 2, 3), 10, "four numbers"),
    ],
)
def test_what_has_no_box_is_refused(region, size, message):
    with pytest.raises(ValueError, match=message):
        normalised_box(region, size)


def test_a_region_box_in_the_wrong_order_is_refused():
    with pytest.raises(ValueError, match="x1 <= x2"):
        build_region_instruction((500, 0, 400, 10))
