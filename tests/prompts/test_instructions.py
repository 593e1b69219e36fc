"""What a user says about one region, and how its box is written."""

import random
import re

import numpy as np
import pytest

from rose_d2.prompts.instructions import (
    CANDIDATE_CLAUSES,
    CATEGORY_DECODING_ASSISTANT,
    CATEGORY_DECODING_USER,
    NOTHING_FOUND,
    REFINEMENT_INSTRUCTIONS,
    REGION_INSTRUCTIONS,
    add_up_counts,
    box_in_words,
    build_instruction,
    build_refinement_instruction,
    build_region_instruction,
    counting_response,
    normalised_box,
)
from rose_d2.prompts.tasks import TASKS
from rose_d2.prompts.tokenizer import build_tokenizer
from rose_d2.structures.segments import SITUATIONS, RefinementRequest

BOX = (12, 30, 500, 999)
REQUESTS = {
    "mask": RefinementRequest("mask", BOX),
    "category": RefinementRequest("category", BOX, "red car"),
    "missed": RefinementRequest("missed", BOX),
}


def test_without_generator_the_papers_wording_is_taken():
    assert build_instruction("semantic") == (
        "Can you segment this image? Please respond with category names and corresponding "
        "segment masks."
    )
    assert build_instruction("instance") == (
        "Please segment all the foreground instances in this image."
    )
    assert build_instruction("referring", description="the red car") == (
        "What is the red car in this image? Please output the segmentation mask."
    )


def test_category_decoding_is_the_papers():
    assert CATEGORY_DECODING_USER == (
        "<CATEGORY> Please decode this linguistic embedding into a noun concept."
    )
    assert CATEGORY_DECODING_ASSISTANT + " dog." == "Sure, it is dog."


@pytest.mark.parametrize("rng", [random.Random(0), np.random.default_rng(0)])
@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_generator_draws_every_wording(task, rng):
    drawn = {build_instruction(task, rng=rng) for _ in range(200)}
    assert drawn == set(TASKS[task].wordings)
    assert len(drawn) >= 4


def test_every_referring_wording_holds_the_description_once():
    rng = np.random.default_rng(0)
    drawn = {build_instruction("referring", description=" a dog ", rng=rng) for _ in range(200)}
    assert len(drawn) == len(TASKS["referring"].wordings)
    assert all(text.count("a dog") == 1 and "  " not in text for text in drawn)


def test_braces_in_a_description_are_kept():
    text = build_instruction("referring", description="the {sign}")
    assert "the {sign}" in text


def test_candidates_follow_the_instruction_in_their_order():
    assert build_instruction("instance", candidates=["cat", "red car", "dog"]) == (
        "Please segment all the foreground instances in this image. "
        "Please choose the category names from: cat, red car, dog."
    )


def test_candidate_clauses_vary_with_the_generator():
    rng = np.random.default_rng(0)
    drawn = {build_instruction("semantic", candidates=["cat", "dog"], rng=rng) for _ in range(400)}
    assert len(drawn) == len(TASKS["semantic"].wordings) * len(CANDIDATE_CLAUSES)
    assert all("cat, dog." in text for text in drawn)


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("segmentation", {}, "the tasks are"),
        ("region", {}, "depend on a region"),
        ("referring", {}, "needs a non-empty description"),
        ("referring", {"description": "  "}, "needs a non-empty description"),
        ("instance", {"description": "a dog"}, "takes no description"),
        ("referring", {"description": "a dog", "candidates": ["dog"]}, "takes no class candidates"),
        ("semantic", {"candidates": []}, "one or more non-empty names"),
        ("semantic", {"candidates": ["dog", " "]}, "one or more non-empty names"),
    ],
)
def test_arguments_that_do_not_fit_the_task_are_refused(task, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_instruction(task, **arguments)


def test_the_papers_sentence():
    names = ["person"] * 5 + ["bicycle"] * 2 + ["car"] * 4 + ["truck"] * 2 + ["umbrella"]
    assert counting_response(names) == (
        "There are 5 person, 2 bicycle, 4 car, 2 truck, 1 umbrella in this image."
    )


def test_names_keep_the_order_of_first_appearance():
    assert counting_response(["dog", "cat", "dog"]) == "There are 2 dog, 1 cat in this image."
    assert counting_response(["cat", "dog", "dog"]) == "There are 1 cat, 2 dog in this image."


def test_cap_keeps_the_most_frequent_names_in_their_order():
    names = ["sky", "dog", "dog", "cat", "car", "car"]
    assert counting_response(names, max_names=2) == "There are 2 dog, 2 car in this image."
    # sky, cat tie with one each: the earlier one stays.
    assert counting_response(names, max_names=3) == "There are 1 sky, 2 dog, 2 car in this image."
    assert counting_response(names, max_names=4) == counting_response(names)


def test_no_target_gives_the_fixed_sentence():
    assert counting_response([], max_names=3) == NOTHING_FOUND


def test_a_cap_below_one_is_refused():
    with pytest.raises(ValueError, match="MAX_COUNTED_NAMES"):
        counting_response(["dog"], max_names=0)


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


@pytest.mark.parametrize(
    ("generated", "said"),
    [
        (
            "There are 1 cow, 2 red car, 1 cow in this image.",
            "There are 2 cow, 2 red car in this image.",
        ),
        (NOTHING_FOUND, NOTHING_FOUND),
        ("There are 1 cow, cow in this image.", "There are 1 cow, cow in this image."),
        ("There are 1 cow, 1 cow", "There are 1 cow, 1 cow"),  # the longest response was reached
    ],
)
def test_equal_names_of_a_response_are_added_up(generated, said):
    assert add_up_counts(generated) == said
