"""Which noun a free-form name is about."""

from __future__ import annotations

from typing import NamedTuple

from rose_d2.modeling.name_normalisation import singular_forms

# What follows these words says more about the noun before them.
_LINKS = {
    *("above", "against", "along", "around", "at", "behind", "below", "beneath", "beside"),
    *("between", "by", "for", "from", "in", "inside", "near", "next", "of", "on", "onto", "over"),
    *("that", "to", "under", "which", "with", "without"),
    *("carrying", "filled", "holding", "made", "riding", "sitting", "standing", "wearing"),
}
# Nouns that only count or portion what follows "of": a pair of shoes is shoes.
_PORTIONS = {
    *("bunch", "bundle", "collection", "couple", "crowd", "flock", "group", "heap", "herd"),
    *("kind", "line", "lot", "pair", "patch", "piece", "pile", "row", "series", "set", "slice"),
    *("stack", "stretch", "strip", "type", "variety"),
}
_ARTICLES = ("a", "an", "some", "the")


class Phrase(NamedTuple):
    """One reading of a name.

    Attributes:
        text: the noun, with those of its modifiers that are still there.
        context: all other words of the name.
    """

    text: str
    context: tuple[str, ...]


def noun_phrases(normalised: str) -> tuple[Phrase, ...]:
    """Readings of a name, from the whole name to its bare head noun.

    English puts the head of a noun phrase last ("red car", "car wheel"), but before a preposition
    ("man in a suit", "tail of a dog"). The nouns of a portion are no heads ("pair of shoes").
    Without a parser, a few dozen words are known as the start of what follows the noun.

    Args:
        normalised: result of `normalise_name`.

    Returns:
        The whole name first, then shorter and shorter ones; empty for an empty name.
    """
    words = normalised.split()
    if not words:
        return ()
    start, end = _core(words)
    phrases = [
        Phrase(" ".join(words[first:end]), (*words[:first], *words[end:]))
        for first in range(start, end)
    ]
    whole = Phrase(normalised, ())
    return tuple(phrases) if phrases[0] == whole else (whole, *phrases)


def _core(words: list[str]) -> tuple[int, int]:
    """Span of the words up to and with the head noun."""
    start = 0
    while True:
        end = next((i for i in range(start + 1, len(words)) if words[i] in _LINKS), len(words))
        has_portion = end + 1 < len(words) and words[end] == "of" and _is_portion(words[end - 1])
        if not has_portion:
            return start, end
        start = end + 1
        while start + 1 < len(words) and words[start] in _ARTICLES:
            start += 1


def _is_portion(word: str) -> bool:
    return any(form in _PORTIONS for form in (word, *singular_forms(word)))
