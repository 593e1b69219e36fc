"""Which of the meanings of a word an image may show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rose_d2.modeling.name_normalisation import normalise_name, singular_forms

# Lexicographer files of what can be seen and touched, and of what can be seen at all.
_CONCRETE = {
    *("noun.Tops", "noun.animal", "noun.artifact", "noun.body", "noun.food", "noun.object"),
    *("noun.person", "noun.plant", "noun.substance"),
}
# Classes of COCO and ADE20k whose sense in images is not the first concrete one, each with another
# word of that synset or one of the synset above it.
_SEEN_AS = {
    "bar": "counter",
    "blind": "protective_covering",
    "bulletin_board": "notice_board",
    "cake": "baked_goods",
    "canopy": "shelter",
    "cushion": "padding",
    "glass": "drinking_glass",
    "mouse": "computer_mouse",
    "net": "fabric",
    "palm": "palm_tree",
    "plant": "flora",
    "plate": "flatware",
    "radiator": "heater",
    "railroad": "railroad_track",
    "runway": "paved_surface",
    "sconce": "wall_bracket",
    "toilet": "commode",
    "van": "truck",
}
# People and parts of the body are what words for other things mean in slang.
_FIGURATIVE = {"noun.body", "noun.person"}
_VISIBLE = {
    *("noun.communication", "noun.event", "noun.group", "noun.location", "noun.phenomenon"),
    *("noun.possession", "noun.quantity", "noun.shape"),
}


class WordSenses:
    """Picks one noun sense of WordNet for a word.

    A name in an image means a thing that can be seen, so it is the first of the word's senses in
    WordNet's order (the commonest first) that lies in a lexicographer file of concrete things; if
    there is none, of other visible ones; never an individual (crane is not Stephen Crane).

    * People and body parts are what many other words mean in slang. Such a sense counts only if
      it is the word's very first and WordNet met the word in its annotated texts, or if there is
      no other: a pig is no slob and a mug no fool, but a kid is a child.
    * A plant yields to its fruit: a banana is what one eats.
    * Posters are no artifacts to WordNet but communication; as a first sense that counts too.
    * For a few class names of COCO and ADE20k the sense is given (`_SEEN_AS`).

    An ambiguous word keeps that one sense, whatever the image shows: a bat is the animal, a crane
    the machine. A class that means something else needs a synonym in its dataset's list: of
    several spellings of a class, the sense that most of them share is taken.

    Measured on the names of LVIS's 1203 classes, whose synsets people chose (WordNet 3.0): this
    sense is theirs for 86 %, WordNet's first for 79 %. Of the names that are a synonym or hyponym
    of a COCO or ADE20k class by those synsets, 9 of 10 are found; of those mapped, 84 to 88 % are
    right, and some others arguable (a passenger car, to WordNet a carriage). Letting all senses of
    a class count doubles the wrong ones and finds next to no more right ones.
    """

    def __init__(self, reader: Any, attested: frozenset[str]) -> None:
        """
        Args:
            reader: NLTK's WordNet reader.
            attested: words WordNet met in its texts, see `WordNetFiles.attested_words`.
        """
        self._reader = reader
        self._attested = attested

    def pick(self, spellings: Sequence[str]) -> Any | None:
        """The synset of a word or of several names of one thing, None if WordNet knows none.

        Args:
            spellings: names in any spelling; "street lamp" is also looked up as "streetlamp".
        """
        forms = {form: None for spelling in spellings for form in _forms(spelling)}
        hints = {_SEEN_AS[form] for form in forms if form in _SEEN_AS}
        candidates = list(dict.fromkeys(s for form in forms for s in self._readings(form)))

        def shared(synset: Any) -> int:
            names = [name.lower() for name in synset.lemma_names()]
            above = {name for parent in synset.hypernyms() for name in parent.lemma_names()}
            return sum(name in forms or name in hints for name in names) + len(above & hints)

        return max(candidates, key=shared, default=None)  # the first of equals

    def _readings(self, form: str) -> list[Any]:
        """Senses that a word may have in an image, likeliest first."""
        synsets = self._reader.synsets(form, "n")
        common = [synset for synset in synsets if not synset.instance_hypernyms()]
        concrete = [synset for synset in common if synset.lexname() in _CONCRETE]
        files = {synset.lexname() for synset in concrete}
        is_produce = any(map(_is_produce, concrete))
        if common[:1] == synsets[:1] and "noun.artifact" not in files:
            concrete = [s for s in common if s in concrete or s == _printed(synsets)]
        is_attested = self._reader.morphy(form, "n") in self._attested
        literal = [
            synset
            for synset in concrete
            if not (is_produce and synset.lexname() == "noun.plant")
            and (synset.lexname() not in _FIGURATIVE or (is_attested and synset == synsets[0]))
        ]
        first = [synset for synset in concrete if synset == synsets[0]]
        return literal or first or [s for s in common if s.lexname() in _VISIBLE] or concrete


def _is_produce(synset: Any) -> bool:
    """Whether it is a fruit or vegetable to eat; the plant has a sense of its own."""
    return synset.lexname() == "noun.food" and any(
        "produce" in parent.lemma_names() for parent in synset.closure(lambda s: s.hypernyms())
    )


def _printed(synsets: list[Any]) -> Any | None:
    """The first sense, if it is a sign or a publication."""
    return next((s for s in synsets[:1] if s.lexname() == "noun.communication"), None)


def _forms(spelling: str) -> Iterator[str]:
    """How WordNet may write a name."""
    normalised = normalise_name(spelling)
    for phrase in (normalised, *singular_forms(normalised)):
        for joint in ("_", "", "-") if " " in phrase else ("",):
            yield phrase.replace(" ", joint)
