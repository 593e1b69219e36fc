"""Spelling rules that make two ways of writing one noun comparable."""

import re
import unicodedata

_ARTICLES = ("a", "an", "the", "some")
_IRREGULAR_SINGULARS = {
    "people": "person",
    "persons": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "oxen": "ox",
    "skis": "ski",
    "taxis": "taxi",
}
# Words whose final s is not a plural.
_SINGULAR_ENDINGS = ("ss", "us", "is")


def normalise_name(name: str) -> str:
    """Lower case, without accents, punctuation, hyphens, a leading article or double spaces.

    "The Stop-Sign." becomes "stop sign"; the number of the noun is kept.
    """
    decomposed = unicodedata.normalize("NFKD", name)
    letters = "".join(char for char in decomposed if not unicodedata.combining(char))
    # An apostrophe joins ("men's" -> "mens"), all other punctuation separates.
    joined = re.sub("['\u2019]", "", letters.casefold())
    words = re.sub(r"[\W_]+", " ", joined).split()
    if len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return " ".join(words)


def singular_forms(normalised: str) -> tuple[str, ...]:
    """Possible singulars of a normalised name, likeliest first; only its last word changes.

    English spelling leaves the choice open ("buses", "vases"), so a caller looks each form up in
    its list of names and takes the first that is there.

    Args:
        normalised: result of `normalise_name`.

    Returns:
        Forms that differ from the input; empty if it does not look like a plural.
    """
    *modifiers, noun = normalised.split() or [""]
    return tuple(" ".join([*modifiers, form]) for form in _singular_nouns(noun))


def _singular_nouns(noun: str) -> tuple[str, ...]:
    if noun in _IRREGULAR_SINGULARS:
        return (_IRREGULAR_SINGULARS[noun],)
    if noun.endswith("men") and len(noun) > 4:
        return (noun[:-3] + "man",)
    if len(noun) < 3 or not noun.endswith("s") or noun.endswith(_SINGULAR_ENDINGS):
        return ()
    if noun.endswith("ies"):
        return (noun[:-3] + "y", noun[:-1])
    if noun.endswith("ves"):
        return (noun[:-3] + "f", noun[:-3] + "fe", noun[:-1])
    if noun.endswith("es"):
        return (noun[:-1], noun[:-2])
    return (noun[:-1],)
