"""What a referring expression goes by, told from its words."""

from __future__ import annotations

import re

# The first that fits. "the dog left of the cat" is a relation, "the left dog" a position.
_RULES = (
    (
        "relation",
        r"\b(above|below|under|underneath|beneath|behind|beside|between|near|nearest|closest|closer"
        r"|higher up than|next to|in front|(left|right|top|front|side) of)\b",
    ),
    (
        "size",
        r"\b(large|larger|largest|big|bigger|biggest|huge|small|smaller|smallest|little|tiny"
        r"|tiniest|tall|taller|tallest|short|shorter|shortest)\b",
    ),
    (
        "position",
        r"\b(left|leftmost|right|rightmost|top|topmost|bottom|bottommost|upper|lower|highest"
        r"|lowest|middle|center|centre|corner|far|furthest|farthest|front|back)\b",
    ),
)
EXPRESSION_KINDS = (*(kind for kind, _ in _RULES), "name")


def expression_kind(sentence: str) -> str:
    """Tell what singles the object out.

    Args:
        sentence: English, for example "the leftmost dog".

    Returns:
        "relation" (to another object), "size" (compared with others of its kind), "position" (in
        the image), or "name": none of these, so its name or its looks.
    """
    words = sentence.casefold()
    return next((kind for kind, rule in _RULES if re.search(rule, words)), "name")
