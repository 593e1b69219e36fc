"""The spelling tokenizer: instruction words whole, names spelled, nothing lost."""

import re

import numpy as np
import pytest
from mini_7b import TEMPLATE_LAYOUTS, TOWER_SIZE, write_llava
from PIL import Image
from transformers import LlavaOnevisionProcessor

from rose_d2.prompts.conversation import Conversation, encode_image_prompt
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


@pytest.mark.parametrize("layout", TEMPLATE_LAYOUTS)
def test_prompts_are_the_processors_token_by_token(tmp_path, layout):
    write_llava(tmp_path, layout)
    words = "Segment the café's 2 dogs."
    prompt = encode_image_prompt(build_tokenizer(str(tmp_path)), Conversation(words))
    processor = LlavaOnevisionProcessor.from_pretrained(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": words}]
    if layout == "tokenizer_config.json":  # Qwen2's own, for strings
        processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
        content = f"<image>\n{words}"
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    image = Image.fromarray(np.zeros((TOWER_SIZE, TOWER_SIZE, 3), dtype=np.uint8))
    ids = processor(images=image, text=text)["input_ids"][0]
    first, count = ids.index(processor.image_token_id), ids.count(processor.image_token_id)
    assert count > 1
    assert list(prompt.before) == ids[:first]
    assert list(prompt.after) == ids[first + count :]
    has_system = "system" in text
    assert has_system == (layout == "tokenizer_config.json")
