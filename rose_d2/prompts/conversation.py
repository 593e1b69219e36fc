"""One instruction and its response, and their rendering into token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

# Where the patches of the image go in a rendered prompt (LLaVA-OneVision's spelling).
IMAGE_TOKEN = "<image>"
# Where a category embedding goes in the decoding prompt (paper section 3.3). It is cut out of
# the rendered text and never reaches a tokenizer, so no vocabulary has to know it.
CATEGORY_TOKEN = "<CATEGORY>"
# Label of tokens that carry no loss, as in PyTorch's cross entropy.
IGNORE_INDEX = -100


@dataclass(frozen=True)
class Conversation:
    """A single turn about one image.

    Attributes:
        instruction: what the user asks, without the image token.
        response: what the model should answer, or None where nothing is to be learnt (at
            inference, and for targets without a name).
    """

    instruction: str
    response: str | None = None


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids around a slot that holds embeddings instead of a token.

    Attributes:
        before: ids in front of the slot.
        after: ids behind it, up to where the response begins.
        response: ids of the response with its end token; empty where there is none.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    response: tuple[int, ...] = ()


def render_user_turn(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Render one user message and the opening of the assistant's with the chat template.

    Templates of vision-language models expect a list of content parts, those of plain language
    models a string; whichever reproduces the text is taken.

    Args:
        tokenizer: a tokenizer with a chat template.
        text: the message, slots included.

    Returns:
        The rendered prompt, ending where the assistant's words begin.

    Raises:
        ValueError: if the tokenizer has no chat template or its template drops the message.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "The tokenizer has no chat template; use the tokenizer folder that belongs to the "
            "LMM, or set MODEL.LMM.TOKENIZER to one that has a template."
        )
    for content in ([{"type": "text", "text": text}], text):
        rendered = _try_render(tokenizer, content)
        if text in rendered and "{'type'" not in rendered:
            return rendered
    raise ValueError("The chat template drops the user's message; it cannot be used for ROSE.")


def _render_image_turn(
    tokenizer: PreTrainedTokenizerBase, instruction: str, image_first: bool
) -> str:
    """Render an image and an instruction: as the template has it, or with the token in the text.

    Templates of vision-language models put the image in front themselves.
    """
    parts = [{"type": "image"}, {"type": "text", "text": instruction}]
    if image_first and tokenizer.chat_template:
        rendered = _try_render(tokenizer, parts)
        if rendered.count(IMAGE_TOKEN) == 1 and instruction in rendered.partition(IMAGE_TOKEN)[2]:
            return rendered
    words = [IMAGE_TOKEN, instruction]
    return render_user_turn(tokenizer, "\n".join(words if image_first else reversed(words)))


def _try_render(tokenizer: PreTrainedTokenizerBase, content: list | str) -> str:
    """The rendered turn, "" where the template takes no such content."""
    messages: list[Any] = [{"role": "user", "content": content}]
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except (TypeError, TemplateError):  # a template for strings adds the list to a string
        return ""
    return str(rendered)


def encode_image_prompt(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, image_first: bool = True
) -> EncodedPrompt:
    """Tokenize a conversation about an image.

    Args:
        tokenizer: the LMM's tokenizer.
        conversation: instruction and optional response.
        image_first: the image before the instruction, as the paper prints it; else behind it.

    Returns:
        Ids around the image slot, and the response with the end token.

    Raises:
        ValueError: if the instruction itself contains the image token.
    """
    if IMAGE_TOKEN in conversation.instruction:
        raise ValueError(f"An instruction must not contain {IMAGE_TOKEN!r}: it is added here.")
    rendered = _render_image_turn(tokenizer, conversation.instruction, image_first)
    before, after = _encode_around(tokenizer, rendered, IMAGE_TOKEN)
    response: tuple[int, ...] = ()
    if conversation.response is not None:
        response = (*_encode(tokenizer, conversation.response), _end_token(tokenizer))
    return EncodedPrompt(before, after, response)


def encode_category_prompt(
    tokenizer: PreTrainedTokenizerBase, user_text: str, answer_opening: str
) -> EncodedPrompt:
    """Tokenize the prompt that decodes a category embedding into a noun (paper section 3.3).

    Args:
        tokenizer: the LMM's tokenizer.
        user_text: the user's words, with the category slot.
        answer_opening: the fixed beginning of the answer; the name follows it.
    """
    rendered = render_user_turn(tokenizer, user_text) + answer_opening
    before, after = _encode_around(tokenizer, rendered, CATEGORY_TOKEN)
    return EncodedPrompt(before, after)


def encode_name(tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[int, ...]:
    """Ids of a name as it follows "Sure, it is": the name, a period and the end token."""
    return (*_encode(tokenizer, f" {name}."), _end_token(tokenizer))


def _encode_around(
    tokenizer: PreTrainedTokenizerBase, rendered: str, slot: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    pieces = rendered.split(slot)
    if len(pieces) != 2:
        raise ValueError(
            f"A rendered prompt must contain {slot!r} once, found it {len(pieces) - 1} times in "
            f"{rendered!r}."
        )
    return _encode(tokenizer, pieces[0]), _encode(tokenizer, pieces[1])


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no end-of-text token, which ends every response.")
    return int(tokenizer.eos_token_id)
