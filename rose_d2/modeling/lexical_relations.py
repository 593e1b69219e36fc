"""Relations between the meanings of nouns, from WordNet."""

from __future__ import annotations

import functools
import importlib.util
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rose_d2.modeling.name_normalisation import normalise_name
from rose_d2.modeling.word_senses import WordSenses
from rose_d2.modeling.wordnet_files import (
    HOW_TO_GET_WORDNET,
    WordNetFiles,
    find_wordnet,
    noun_reader,
    open_wordnet,
)

logger = logging.getLogger(__name__)

# Of WordNet's top file only these are words for things; the rest (entity, object, whole, living
# thing, artifact, ...) is above nearly everything.
_USEFUL_TOPS = {"person", "animal", "plant", "food"}
# A finger is part of a hand, an arm and a body.
_PART_STEPS = 3
SIMILARITIES = ("path", "wup")


class LexicalRelations:
    """Noun senses of WordNet and what is above them and around them.

    A sense is the byte offset of its synset; every word has one, see `WordSenses`.

    Methods may be called from several threads.
    """

    def __init__(self, files: WordNetFiles) -> None:
        """
        Args:
            files: the noun database.

        Raises:
            ModuleNotFoundError: if NLTK is not installed.
        """
        self.source = str(files.path)
        self._reader = noun_reader(files)
        self._senses = WordSenses(self._reader, files.attested_words())
        self._lock = threading.RLock()
        self._above: dict[int, dict[int, int]] = {}
        people = [s for s in self._reader.synsets("person", "n") if s.lexname() == "noun.Tops"]
        self._person = people[0] if people else None

    def sense(self, spellings: Sequence[str]) -> int | None:
        """The sense of a word or of several names of one thing, None if WordNet knows none.

        Args:
            spellings: names in any spelling; "street lamp" is also looked up as "streetlamp".
        """
        with self._lock:
            synset = self._senses.pick(spellings)
            return None if synset is None else synset.offset()

    def ancestors(self, sense: int) -> Mapping[int, int]:
        """The sense itself and all more general ones, with the steps up to them.

        It ends below the words that are above nearly everything (WordNet's top file, but for
        person, animal, plant and food): that, not a number of steps, is where a hypernym says
        too little, since a dog is two steps from animal and a horse eight.
        """
        with self._lock:
            if sense not in self._above:
                self._above[sense] = self._climb(sense)
            return self._above[sense]

    def words(self, sense: int) -> frozenset[str]:
        """The normalised names of a sense."""
        with self._lock:
            names = self._synset(sense).lemma_names()
        return frozenset(normalise_name(name) for name in names)

    def wholes(self, sense: int) -> tuple[int, ...]:
        """Senses of which this one is a part, nearest first, at most three steps away."""
        with self._lock:
            found, level = {sense: None}, [self._synset(sense)]
            for _ in range(_PART_STEPS):
                level = [whole for synset in level for whole in synset.part_holonyms()]
                found.update(dict.fromkeys(sorted(whole.offset() for whole in level)))
            return tuple(found)[1:]

    def distances(self, sense: int) -> Mapping[int, int]:
        """Like `ancestors`, up to WordNet's root."""
        with self._lock:
            steps = self._synset(sense).hypernym_distances()
            shortest: dict[int, int] = {}
            for synset, distance in steps:
                offset = synset.offset()
                shortest[offset] = min(distance, shortest.get(offset, distance))
            return shortest

    def depths(self, sense: int) -> tuple[int, int]:
        """Steps from WordNet's root, on the shortest and on the longest way."""
        with self._lock:
            return self._synset(sense).min_depth(), self._synset(sense).max_depth()

    def _synset(self, sense: int) -> Any:
        return self._reader.synset_from_pos_and_offset("n", sense)

    def _climb(self, sense: int) -> dict[int, int]:
        above, queue = {sense: 0}, [self._synset(sense)]
        for synset in queue:
            for parent in self._parents(synset):
                if parent.offset() not in above:
                    above[parent.offset()] = above[synset.offset()] + 1
                    queue.append(parent)
        return above

    def _parents(self, synset: Any) -> list[Any]:
        if synset.lexname() == "noun.Tops":
            return []
        parents = [
            parent
            for parent in synset.hypernyms()
            if parent.lexname() != "noun.Tops" or parent.lemma_names()[0] in _USEFUL_TOPS
        ]
        # WordNet files a driver under causal agents and a human under primates only.
        is_human = "human" in synset.lemma_names() and synset.lexname() == "noun.animal"
        is_person = synset.lexname() == "noun.person" and not parents
        if self._person is not None and (is_human or is_person):
            parents.append(self._person)
        return parents


@functools.cache
def load_lexical_relations(wordnet: str) -> LexicalRelations | None:
    """WordNet's relations, loaded once per process.

    Args:
        wordnet: TEST.VOCABULARY.WORDNET: a folder or zip file; "auto" for the places where NLTK
            and Debian put it, None if it is not there or NLTK is not installed; "" for None.

    Raises:
        ValueError: if a named folder has no WordNet.
        ModuleNotFoundError: if a folder is named and NLTK is not installed.
    """
    if not wordnet:
        return None
    if wordnet != "auto":
        return LexicalRelations(open_wordnet(wordnet))
    files = find_wordnet()
    if files is None or importlib.util.find_spec("nltk") is None:
        missing = "WordNet" if files is None else "NLTK"
        logger.info("No lexical rules: %s is not installed; %s.", missing, HOW_TO_GET_WORDNET)
        return None
    logger.info("Lexical rules from WordNet in %s", files.path)
    return LexicalRelations(files)


def class_similarity_matrix(
    class_names: Sequence[str], measure: str, *, wordnet: str = "auto"
) -> np.ndarray:
    """How near classes are in WordNet, the weights of Open mIoU, AP and PQ (arXiv 2311.03352).

    "path" is 1 / (1 + steps of the shortest way over a common hypernym); "wup" (Wu and Palmer,
    ACL 1994) is 2 d / (2 d + steps), with the depth d of the lowest common hypernym and the steps
    over it, counted as NLTK does (of several lowest ones, the one that gives the most). Classes
    WordNet does not know are near themselves only.

    Args:
        class_names: C names; "a, b" lists synonyms.
        measure: one of `SIMILARITIES`.
        wordnet: as for `load_lexical_relations`.

    Returns:
        (C, C) float64, symmetric, in [0, 1], ones on the diagonal.

    Raises:
        ValueError: if the measure is unknown or there is no WordNet.
    """
    if measure not in SIMILARITIES:
        raise ValueError(f"Unknown similarity {measure!r}; it is one of {', '.join(SIMILARITIES)}.")
    relations = load_lexical_relations(wordnet)
    if relations is None:
        raise ValueError(
            f"The similarity {measure!r} of classes needs WordNet: {HOW_TO_GET_WORDNET}."
        )
    senses = [relations.sense(name.split(",")) for name in class_names]
    above = [{} if sense is None else relations.distances(sense) for sense in senses]
    depths = {offset: relations.depths(offset) for offset in set().union(*above)}
    matrix = np.eye(len(senses))
    for i, first in enumerate(above):
        for j in range(i):
            common = first.keys() & above[j].keys()
            if common:
                steps = {offset: first[offset] + above[j][offset] for offset in common}
                matrix[i, j] = matrix[j, i] = _nearness(steps, depths, measure)
    return matrix


def _nearness(
    steps: Mapping[int, int], depths: Mapping[int, tuple[int, int]], measure: str
) -> float:
    if measure == "path":
        return 1 / (1 + min(steps.values()))
    lowest = max(depths[offset][0] for offset in steps)
    return max(
        2 * (longest + 1) / (2 * (longest + 1) + steps[offset])
        for offset, (shortest, longest) in ((o, depths[o]) for o in steps)
        if shortest == lowest
    )
