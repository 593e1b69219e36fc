"""Classes for names by the lexical relations between their words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

from rose_d2.vocabulary.names import Phrase, normalise_name, noun_phrases, singular_forms
from rose_d2.vocabulary.wordnet import LexicalRelations


class LexicalClasses:
    """The four WordNet rules, for the classes of one vocabulary.

    Mapping by lexical relations instead of embedding similarity, which disagrees with people in
    38 % of cases, and reporting it relation by relation follow "Benchmarking Open-ended
    Segmentation" (ICLR 2026, openreview QSmwRnw8GP); what follows are our choices.

    * wordnet synonym: the name has the class's sense (couch, sofa);
    * hyponym: the class is above the name (poodle, dog); the nearest one, of equals the one with
      the smaller id;
    * hypernym: the name is above the class (vehicle, car);
    * part: the class is a whole the name is part of (roof, building), or a kind of it.

    A hypernym or part that fits several classes names none of them ("vehicle" where there are cars
    and buses, "wheel") and is left unmapped: the nearest would be a guess. It is not ambiguous if
    all of them are kinds of one of them, or if the rest of the name says which ("wheel of a car").

    A name is looked up as a whole first, then without its modifiers, down to the head noun (see
    `names.py`); the first phrase WordNet knows decides, so a hot dog is no dog. A name shorter
    by a modifier which spells a class ("red car") is a hyponym of it. This is not known without
    WordNet, which tells modifiers from compounds with a meaning of their own.

    A class that WordNet does not know ("stop sign") is a kind of its head noun; it can be the
    class of a hypernym or part, but not of other senses.
    """

    def __init__(
        self,
        relations: LexicalRelations,
        spellings: Sequence[Sequence[str]],
        class_spelled: Callable[[str], int | None],
    ) -> None:
        """
        Args:
            relations: of WordNet.
            spellings: the names of each of the C classes, its own name first.
            class_spelled: class id of a normalised phrase that spells a class, else None.
        """
        self._relations = relations
        self._class_spelled = class_spelled
        self._class_of: dict[int, int] = {}  # sense -> class
        self._kinds: dict[int, set[int]] = {}  # sense -> classes that are kinds of it
        self._kinds_by_word: dict[str, set[int]] = {}  # name of such a sense -> the same
        self._above: list[Mapping[int, int]] = []  # class -> senses above it
        self._class_of_name: dict[str, int] = {}
        for class_id, names in enumerate(spellings):
            self._class_of_name.setdefault(normalise_name(names[0]), class_id)
            sense = relations.sense(names)
            if sense is not None:
                self._class_of.setdefault(sense, class_id)
                above = {s: d for s, d in relations.ancestors(sense).items() if d}
            else:
                above = dict(self._above_head(names[0]))
            self._above.append(above)
            for more_general in above:
                self._kinds.setdefault(more_general, set()).add(class_id)
                for word in relations.words(more_general):
                    self._kinds_by_word.setdefault(word, set()).add(class_id)

    def find(self, normalised: str) -> tuple[int, str] | None:
        """Class of a name and the rule that gave it.

        Args:
            normalised: result of `normalise_name`, of a name that spells no class.
        """
        for phrase in noun_phrases(normalised):
            is_whole = phrase.text == normalised
            class_id = None if is_whole else self._class_spelled(phrase.text)
            if class_id is not None:
                return class_id, "hyponym"
            sense = self._relations.sense([phrase.text])
            if sense is not None:
                return self._find_sense(phrase, sense, is_whole)
        return None

    def _find_sense(self, phrase: Phrase, sense: int, is_whole: bool) -> tuple[int, str] | None:
        nearest = self._nearest(sense)
        if nearest is not None:
            steps, class_id = nearest
            return class_id, "wordnet synonym" if is_whole and not steps else "hyponym"
        for rule, class_id in (
            ("hyponym", self._head_class(phrase.text, sense)),
            ("hypernym", self._the_one(self._kinds_of(phrase.text, sense), phrase)),
            ("part", self._the_one(self._whole_classes(sense), phrase)),
        ):
            if class_id is not None:
                return class_id, rule
        return None

    def _nearest(self, sense: int) -> tuple[int, int] | None:
        """(steps, class) of the nearest class that has the sense or is above it."""
        above = self._relations.ancestors(sense)
        return min(
            ((steps, self._class_of[s]) for s, steps in above.items() if s in self._class_of),
            default=None,
        )

    def _head_class(self, text: str, sense: int) -> int | None:
        """The class that a compound ends with, if WordNet calls a sense above it so.

        A dining table is under a sense of table, if not under the one chosen for the class.
        """
        words = text.split()
        above = self._relations.ancestors(sense)
        for start in range(1, len(words)):
            head = " ".join(words[start:])
            class_id = self._class_of_name.get(head)
            if class_id is not None and any(head in self._relations.words(s) for s in above):
                return class_id
        return None

    def _kinds_of(self, text: str, sense: int) -> set[int]:
        """Classes below the sense, or below any sense of the word."""
        forms = (text, *singular_forms(text))
        below = (self._kinds_by_word.get(form, set()) for form in forms)
        return self._kinds.get(sense, set()).union(*below)

    def _whole_classes(self, sense: int) -> set[int]:
        """Classes the sense is a part of, or else kinds of what it is a part of."""
        found: set[int] = set()
        for whole in self._relations.wholes(sense):
            nearest = self._nearest(whole)
            found |= self._kinds.get(whole, set()) if nearest is None else {nearest[1]}
        return found

    def _the_one(self, candidates: Set[int], phrase: Phrase) -> int | None:
        """The class that is meant, if it is clear."""
        named = self._named(phrase.context)
        if named:
            return min(candidates & named, default=None)
        inside = candidates & self._named(phrase.text.split()[:-1])
        if inside:
            return min(inside)
        for class_id in sorted(candidates):
            if all(other == class_id or self._is_kind(other, class_id) for other in candidates):
                return class_id
        return None

    def _is_kind(self, class_id: int, general: int) -> bool:
        return any(self._class_of.get(sense) == general for sense in self._above[class_id])

    def _named(self, context: Sequence[str]) -> set[int]:
        """Classes spelled by one word of the context or by two in a row."""
        pairs = [" ".join(pair) for pair in zip(context, context[1:], strict=False)]
        spelled = (self._class_spelled(phrase) for phrase in (*context, *pairs))
        return {class_id for class_id in spelled if class_id is not None}

    def _above_head(self, class_name: str) -> Mapping[int, int]:
        for phrase in noun_phrases(normalise_name(class_name))[1:]:
            sense = self._relations.sense([phrase.text])
            if sense is not None:
                return self._relations.ancestors(sense)
        return {}
