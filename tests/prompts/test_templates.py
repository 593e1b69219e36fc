import random

import numpy as np
import pytest

from rose_d2.prompts.instructions import (
    CANDIDATE_CLAUSES,
    CATEGORY_DECODING_ASSISTANT,
    CATEGORY_DECODING_USER,
    INSTRUCTIONS,
    build_instruction,
)


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
    assert drawn == set(INSTRUCTIONS[task])
    assert len(drawn) >= 4


def test_every_referring_wording_holds_the_description_once():
    rng = np.random.default_rng(0)
    drawn = {build_instruction("referring", description=" a dog ", rng=rng) for _ in range(200)}
    assert len(drawn) == len(INSTRUCTIONS["referring"])
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
    assert len(drawn) == len(INSTRUCTIONS["semantic"]) * len(CANDIDATE_CLAUSES)
    assert all("cat, dog." in text for text in drawn)


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("segmentation", {}, "known tasks are"),
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
