import pytest

from rose_d2.predictor.session_instructions import (
    check_text,
    refinement_request,
    refinement_words,
    situation_of,
)
from rose_d2.prompts.instructions import REFINEMENT_INSTRUCTIONS
from rose_d2.structures.segments import RefinementRequest

BOX = (10, 20, 300, 400)


@pytest.mark.parametrize(
    "text",
    [
        "The name is wrong.",
        "wrong category!",
        "it is labelled wrongly",
        "This is misnamed",
        "this should be called a cat",
        "This is not a dog.",
        "this isn’t a dog, it is a cat",
        "not   dog",
        "No, that is no wolf, look again.",
        "It is a cat",
        "that's actually a cat",
        "this should be a cat",
        "This is not a dog and its mask is incomplete.",
    ],
)
def test_words_about_the_name_ask_for_another_name(text):
    assert situation_of(text, "dog") == "category"


@pytest.mark.parametrize(
    "text",
    [
        "This mask is incomplete, please ensure the entire object is captured.",
        "this is not a good mask",
        "This is not the whole dog.",
        "the dog's tail is missing",
        "it does not include the tail",
        "there is a hole in it",
        "it's a bit too large",
        "the outline is rough",
        "please do better",
        "it is not accurate",
        "do not forget the legs of the dog",
    ],
)
def test_all_other_words_ask_for_another_mask(text):
    assert situation_of(text, "dog") == "mask"


def test_without_a_name_there_is_none_to_correct():
    assert situation_of("The name is wrong.", " ") == "mask"


@pytest.mark.parametrize("situation", ["mask", "category"])
def test_every_trained_wording_means_its_own_situation(situation):
    for wording in REFINEMENT_INSTRUCTIONS[situation]:
        text = wording.format(box="[1, 2, 3, 4]", category="dog")
        assert situation_of(text, "dog") == situation, text


def test_the_trained_sentence_follows_the_users_words():
    request = RefinementRequest("mask", BOX)
    trained = refinement_words(None, request)
    assert trained.endswith("The target is in the box [10, 20, 300, 400].")
    assert refinement_words("Fix the tail", request) == f"Fix the tail. {trained}"
    assert refinement_words("Fix the tail!", request) == f"Fix the tail! {trained}"


def test_a_text_with_a_box_in_words_is_sent_as_it_is():
    text = "Please refine the given mask of the target in the box [1, 2, 3, 4]."
    assert refinement_words(text, RefinementRequest("mask", BOX)) == text


def test_the_wrong_name_is_the_segments():
    request = refinement_request("this is not a dog", None, BOX, "dog")
    assert request == RefinementRequest("category", BOX, "dog")
    assert "wrongly predicted as dog" in refinement_words("this is not a dog", request)


def test_a_situation_given_overrides_the_text():
    assert refinement_request("wrong name", "mask", BOX, "dog").situation == "mask"
    assert refinement_request("a hole", "category", BOX, "dog").wrong_category == "dog"
    assert refinement_request(None, None, BOX, "dog").situation == "mask"


@pytest.mark.parametrize(
    ("situation", "name", "message"),
    [("missed", "dog", r"missed\(box\)"), ("x", "dog", "choose"), ("category", "", "no name")],
)
def test_impossible_situations_are_refused(situation, name, message):
    with pytest.raises(ValueError, match=message):
        refinement_request("text", situation, BOX, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), (" \n", "empty"), (None, "empty"), ("an <image>", "only the model uses")],
)
def test_texts_that_cannot_be_sent_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        check_text(text)
