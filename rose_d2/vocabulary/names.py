"""Names as words: spellings that mean one noun, noun phrases, class names of datasets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

_ARTICLES = ("a", "an", "some", "the")
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
# Where the first word of a list is misspelt, rare, or by itself means something else.
_ADE20K_EXCEPTIONS = {
    "base": "pedestal",
    "case": "display case",
    "conveyer belt": "conveyor belt",
    "falls": "waterfall",
    "glass": "drinking glass",
    "hood": "exhaust hood",
    "hovel": "hut",
    "minibike": "motorbike",
    "palm": "palm tree",
    "plaything": "toy",
    "tank": "storage tank",
    "tub": "bathtub",
}
# Say that a class is the rest of something, or the stuff that replaces a thing of that name.
_COCO_SUFFIX = re.compile("(-other|-stuff|-merged)+$")
_COCO_EXCEPTIONS = {
    "clouds": "cloud",
    "leaves": "leaf",
    "playingfield": "playing field",
    "solid": "solid material",
    "structural": "structure",
    "wall-panel": "paneled wall",
    "waterdrops": "water drop",
    "window-blind": "window blind",
}
# Levels of the hierarchy that only sort; as the last level "human--person" they are the name.
_MAPILLARY_GROUPS = {
    *("animal", "construction", "human", "nature", "object", "void"),
    *("barrier", "flat", "person", "rider", "structure", "support", "vehicle"),
    *("continuous", "discrete"),
}
# Names and readable names word some levels differently. None: the usual case, not said.
_MAPILLARY_LEVELS = {
    "marking": "lane marking",
    "signage": "sign",
    "dashed line": "dashed",
    "straight line": "solid",
    "zigzag line": "zigzag",
    "other marking": "other",
    "test": "text",  # a misprint in the readable names
    "information parking": "parking",
    "pedestrians": "pedestrian",
    "cyclists": "cyclist",
    "general": None,
    "front": None,
}
_MAPILLARY_EXCEPTIONS = {
    "acoustic": "acoustic barrier",
    "ambiguous": "ambiguous barrier",
    "crosswalk lane marking": "zebra crosswalk",
    "crosswalk plain": "plain crosswalk",
    "crosswalk zebra lane marking": "zebra crosswalk",
    "direction traffic sign": "direction sign",
    "dynamic": "dynamic object",
    "give way row lane marking": "give way marking row",
    "give way single lane marking": "single give way marking",
    "individual": "person",
    "on rails": "rail vehicle",
    "other barrier": "barrier",
    "parking": "parking area",
    "parking traffic sign": "parking sign",
    "road side": "roadside",
    "row give way lane marking": "give way marking row",
    "separator": "lane separator",
    "single give way lane marking": "single give way marking",
    "static": "static object",
    "stop line lane marking": "stop line",
    "temporary": "temporary barrier",
    "wheeled slow": "slow wheeled vehicle",
}


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


class CleanNames(NamedTuple):
    """The names of C classes.

    Attributes:
        names: C names, all different.
        synonyms: C lists of spellings, the name itself first. No spelling belongs to two classes.
    """

    names: list[str]
    synonyms: list[list[str]]


def clean_class_names(raw_names: Sequence[str], style: str) -> CleanNames:
    """Clean all class names of a dataset.

    Args:
        raw_names: C names as the dataset spells them.
        style: how it spells them, one of `STYLES`:
            "ade20k": synonyms with commas, "road, route";
            "coco": COCO, COCO panoptic and COCO-Stuff, "wall-brick", "sky-other-merged";
            "mapillary_vistas": names ("object--traffic-sign--back") or readable names
            ("Traffic Sign (Back)") of its config.json; both give the same;
            "plain": nothing but case, underscores and spaces to clean, for a user's own data.

    Returns:
        Names and synonyms in the order of the classes.

    Raises:
        ValueError: the style is unknown, a name is empty, or two classes get the same name.
    """
    if style not in STYLES:
        raise ValueError(f"Unknown style {style!r} of class names; known are {', '.join(STYLES)}.")
    spellings = [STYLES[style](_tidy(raw_name)) for raw_name in raw_names]
    owners: dict[str, int] = {}
    for class_id, (raw_name, (name, *_)) in enumerate(zip(raw_names, spellings, strict=True)):
        if not name:
            raise ValueError(
                f"Class {class_id} has the name {raw_name!r}, of which nothing is left after "
                "cleaning; give it a name."
            )
        if name in owners:
            raise ValueError(
                f"The classes {raw_names[owners[name]]!r} and {raw_name!r} would both be called "
                f"{name!r}, and the model could not tell them apart; rename one of them."
            )
        owners[name] = class_id
    for class_id, names in enumerate(spellings):
        for name in names:
            owners.setdefault(name, class_id)
    synonyms = [
        [name for name in dict.fromkeys(names) if name and owners[name] == class_id]
        for class_id, names in enumerate(spellings)
    ]
    return CleanNames([names[0] for names in spellings], synonyms)


def _tidy(raw_name: str) -> str:
    """Lower case, spaces for underscores, no spaces around or doubled."""
    return " ".join(raw_name.replace("_", " ").lower().split())


def _ade20k_spellings(text: str) -> list[str]:
    """From "palm, palm tree" to ["palm tree", "palm"]."""
    spellings = [part.strip() for part in re.split("[,;]", text)]
    first = spellings[0]
    return [_ADE20K_EXCEPTIONS.get(first, first), *spellings]


def _coco_spellings(text: str) -> list[str]:
    """From "wall-brick" to ["brick wall", "wall brick"]."""
    stem = _COCO_SUFFIX.sub("", text)
    what, *kinds = stem.split("-")
    name = _COCO_EXCEPTIONS.get(stem, " ".join([*kinds, what]))
    return [name, stem.replace("-", " ")]


def _mapillary_spellings(text: str) -> list[str]:
    """From "object--traffic-sign--back" or "traffic sign (back)" to ["traffic sign back"]."""
    only = text.startswith("marking-only--") or "(only)" in text
    levels = _mapillary_levels(text.replace("marking-only--", "marking--").replace("(only)", ""))
    kinds = [_MAPILLARY_LEVELS.get(level, level) for level in levels] if levels[1:] else levels
    kinds = [re.sub("^(split|general) ", "", kind) for kind in kinds if kind]
    suffix = [kinds.pop()] if kinds[1:] and kinds[-1] == "back" else []
    suffix += ["only"] * only
    phrase = " ".join(reversed(kinds))
    name = _MAPILLARY_EXCEPTIONS.get(phrase, phrase)
    as_written = [*levels, *["only"] * only]
    return [" ".join([name, *suffix]), " ".join([phrase, *suffix]), " ".join(as_written)]


def _mapillary_levels(text: str) -> list[str]:
    """Levels from general to special, with at least one."""
    if "--" in text:
        *upper, last = (level.replace("-", " ") for level in text.split("--"))
        levels = [level for level in upper if level not in _MAPILLARY_GROUPS]
        # The side of a sign is a level of its own only in readable names.
        side = re.fullmatch("(.+) (back|front)", last)
        return levels + (list(side.groups()) if side else [last])
    levels = [level.strip() for level in re.split(r" - |[()]", text)]
    return [level for level in levels if level] or [""]


def _plain_spellings(text: str) -> list[str]:
    return [text]


STYLES: dict[str, Callable[[str], list[str]]] = {
    "ade20k": _ade20k_spellings,
    "coco": _coco_spellings,
    "mapillary_vistas": _mapillary_spellings,
    "plain": _plain_spellings,
}
"""How datasets spell class names: style -> the spellings of a tidied name, the best one first."""
