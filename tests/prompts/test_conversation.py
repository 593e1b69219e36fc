"""Rendering of conversations into ids around a slot."""

import pytest

from rose_d2.prompts.conversation import (
    Conversation,
    encode_category_prompt,
    encode_image_prompt,
    encode_name,
    render_user_turn,
)
from rose_d2.prompts.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("tiny")


def test_image_comes_first_and_the_assistant_opens(tokenizer):
    prompt = encode_image_prompt(tokenizer, Conversation("Segment the dog.", "There are 1 dog."))
    assert tokenizer.decode(prompt.before) == "<|im_start|>user\n"
    assert tokenizer.decode(prompt.after) == (
        "\nSegment the dog.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(prompt.response) == "There are 1 dog.<|im_end|>"


def test_image_may_come_last(tokenizer):
    prompt = encode_image_prompt(tokenizer, Conversation("Segment."), image_first=False)
    assert tokenizer.decode(prompt.before) == "<|im_start|>user\nSegment.\n"
    assert prompt.response == ()


def test_category_slot_is_cut_out(tokenizer):
    prompt = encode_category_prompt(tokenizer, "<CATEGORY> Decode.", "Sure, it is")
    assert tokenizer.decode(prompt.before) == "<|im_start|>user\n"
    assert tokenizer.decode(prompt.after) == (
        " Decode.<|im_end|>\n<|im_start|>assistant\nSure, it is"
    )


def test_name_ends_with_period_and_end_token(tokenizer):
    assert tokenizer.decode(encode_name(tokenizer, "red car")) == " red car.<|im_end|>"


def test_instruction_with_an_image_token_is_refused(tokenizer):
    with pytest.raises(ValueError, match="must not contain '<image>'"):
        encode_image_prompt(tokenizer, Conversation("Look at <image>."))


def test_templates_for_plain_strings_work_too(tokenizer):
    original = tokenizer.chat_template
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}[reply]"
    )
    try:
        assert render_user_turn(tokenizer, "<image>\nHi") == "[user]<image>\nHi[reply]"
        tokenizer.chat_template = None
        with pytest.raises(ValueError, match="no chat template"):
            render_user_turn(tokenizer, "Hi")
    finally:
        tokenizer.chat_template = original
