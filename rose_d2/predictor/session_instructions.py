"""From what a user writes freely about a segment to an instruction the model was trained on.

The model learnt fixed wordings with the region's box in words. Free text alone leaves it without
the box and, for the tiny model, largely without known words; the trained sentence alone ignores
the user. So both are sent: the user's text, then the trained sentence of its situation. A text
that has a box in it already, such as a trained sentence, is sent as it is.
"""

from __future__ import annotations

import re

from rose_d2.prompts.conversation import CATEGORY_TOKEN, IMAGE_TOKEN
from rose_d2.prompts.instructions import build_refinement_instruction
from rose_d2.structures.segments import NormalisedBox, RefinementRequest

REFINE_SITUATIONS = ("mask", "category")


_BOX_IN_WORDS = re.compile(r"\[\s*\d+\s*(,\s*\d+\s*){3}\]")


# Naming is spoken of.
_NAMING = re.compile(
    r"\b((re|mis)?nam(e|es|ed|ing)|categor(y|ies)|class|mis?label(l?ed)?|label(l?ed)?|called|identify)\b"
)


# The shape is spoken of.
_SHAPE = re.compile(
    r"\b(masks?|segment(ed|s|ation)?|boundar(y|ies)|borders?|edges?|outlines?|contours?|shapes?"
    r"|area|pixels?|holes?|gaps?|parts?|pieces?|bits?|side|half|rest|(in)?complete(ly)?|whole"
    r"|entire(ly)?|full(y)?|missing|extra|covers?|cut|rough|smooth(er)?|(bigg|larg|small|tight)er"
    r"|too)\b"
)


# "not a cat", "isn't the cat", "that is no cat"; "it is a cat", "this should be a cat".
_CLAIM = re.compile(
    r"\b(not|isn't|isnt|wasn't) (an?|the) [a-z]"
    r"|\b(it|this|that)('s| is) no [a-z]"
    r"|\b(it|this|that|should|must)('s| is| was| be) (\w+ly )?an? [a-z]"
)


def situation_of(text: str, category_name: str) -> str:
    """Decide whether a text complains about a segment's name or about its mask.

    "category" where the text (1) speaks of naming ("the name is wrong", "wrong category"),
    (2) denies the segment's name ("this is not a dog"), or (3) denies or asserts some name
    ("it is a cat") without a word about shape ("this is not a good mask"). All else is "mask".

    Args:
        text: the user's words.
        category_name: the segment's name; without one there is no name to correct, so "mask".
    """
    words = " ".join(text.casefold().replace("’", "'").split())
    name = category_name.strip().casefold()
    if not name:
        return "mask"
    denies_name = re.search(
        rf"\b(not|no|never|isn't|isnt|wasn't) ((an?|the) )?{re.escape(name)}(?!\w)", words
    )
    if _NAMING.search(words) or denies_name:
        return "category"
    return "category" if _CLAIM.search(words) and not _SHAPE.search(words) else "mask"


def refinement_words(text: str | None, request: RefinementRequest) -> str:
    """Join the user's words and the trained sentence.

    Args:
        text: the user's words; None for none.
        request: situation, box and wrong name.

    Returns:
        The instruction for the model.
    """
    trained = build_refinement_instruction(request)
    if text is None:
        return trained
    return text if _BOX_IN_WORDS.search(text) else f"{_as_sentence(text)} {trained}"


def refinement_request(
    text: str | None,
    situation: str | None,
    box: NormalisedBox,
    category_name: str,
    expression: str | None = None,
) -> RefinementRequest:
    """The situation of a segment that is to be refined.

    Args:
        text: the user's words, or None.
        situation: "mask" or "category" overrides what the text says; None goes by the text.
        box: of the segment's mask.
        category_name: the segment's name.
        expression: what the segment was asked for with, if it was; sent along for "mask".

    Raises:
        ValueError: an unknown situation, or "category" for a segment without a name.
    """
    if situation not in (None, *REFINE_SITUATIONS):
        raise ValueError(
            f"Got situation {situation!r} for a segment that exists; choose 'mask' (its mask is "
            "wrong) or 'category' (its name is wrong), or leave it out. For an object that was "
            "not found, use missed(box)."
        )
    if situation == "category" and not category_name.strip():
        raise ValueError(
            "This segment has no name that could be wrong; ask name(segment) for one, or refine "
            "it with situation='mask'."
        )
    situation = situation or situation_of(text or "", category_name)
    if situation == "category":
        return RefinementRequest(situation, box, category_name)
    return RefinementRequest(situation, box, expression=expression)


def check_text(text: str) -> str:
    """Refuse words that cannot be sent.

    Args:
        text: what the user wrote.

    Returns:
        The text without spaces around it.

    Raises:
        ValueError: it is empty, no text, or has one of the model's own tokens in it.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"The text is empty (got {text!r}); say what is wrong, for example 'this mask is "
            "incomplete', or leave it out."
        )
    for token in (IMAGE_TOKEN, CATEGORY_TOKEN):
        if token in text:
            raise ValueError(
                f"The text contains {token!r}, which only the model uses; leave it out."
            )
    return text.strip()


def _as_sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."
