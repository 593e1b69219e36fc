"""The spelling tokenizer: instruction words whole, names spelled, nothing lost."""

import re

import pytest

from rose_d2.prompts.instructions import (
    CANDIDATE_CLAUSES,
    CATEGORY_DECODING_ASSISTANT,
    CATEGORY_DECODING_USER,
    NOTHING_FOUND,
)
from rose_d2.prompts.tasks import TASKS
from rose_d2.prompts.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("tiny")


def test_every_instruction_word_is_one_token(tokenizer):
    wordings = [w for task in TASKS.values() for w in task.wordings]
    wordings += [*CANDIDATE_CLAUSES, CATEGORY_DECODING_USER, CATEGORY_DECODING_ASSISTANT]
    slots = r"\{\w+\}|<CATEGORY>"
    for wording in [*wordings, NOTHING_FOUND]:
        text = re.sub(slots, "", wording)
        # Behind a newline, as in a rendered prompt.
        tokens = tokenizer.tokenize("\n" + text.strip())
        words = re.findall(r"[A-Za-z]+", text)
        assert len([t for t in tokens if re.search("[A-Za-z]", t)]) == len(words), tokens


@pytest.mark.parametrize("name", ["dog", "red car", "traffic light", "giraffe", "balloon"])
def test_names_take_several_tokens(tokenizer, name):
    assert len(tokenizer.tokenize(" " + name)) > len(name.split())


@pytest.mark.parametrize("text", [" red car.", "éclair, 漢字 & co", "a  b\nc", "[12, 999]"])
def test_round_trip_keeps_every_character(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_ids_are_fixed(tokenizer):
    """A shipped checkpoint depends on these numbers."""
    ids = tokenizer.encode("Please segment the red car.", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "Please", "▁segment", "▁the", "▁r", "ed", "▁c", "ar", ".",
    ]  # fmt: skip
    assert ids == [513, 581, 594, 375, 399, 360, 403, 275]


def test_missing_source_says_what_to_set():
    with pytest.raises(ValueError, match="MODEL.LMM.TOKENIZER"):
        build_tokenizer("")
