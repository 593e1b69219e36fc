"""From the names the model writes to the classes of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from torch import Tensor

from rose_d2.vocabulary.lexical_mapping import LexicalClasses
from rose_d2.vocabulary.names import normalise_name, singular_forms
from rose_d2.vocabulary.text_embeddings import ClassSimilarity, TextEmbeddingBank
from rose_d2.vocabulary.wordnet import HOW_TO_GET_WORDNET, LexicalRelations, load_lexical_relations

__all__ = [
    "LEVELS",
    "MAPPING_RULES",
    "UNMAPPED",
    "CategoryVocabulary",
    "ClassSimilarity",
    "NameMapping",
    "counts_at",
]
SIMILARITY_CHOICES = ("", "name", "predicted")
UNMAPPED = "unmapped"
# In the order in which they are tried; a name is mapped by the first rule that knows it.
MAPPING_RULES = (
    "exact",
    "normalised",
    "synonym",
    "wordnet synonym",
    "hyponym",
    "hypernym",
    "part",
    "similarity",
    UNMAPPED,
)
# A level counts what its rule and all rules before it mapped.
LEVELS = MAPPING_RULES[:-1]
SPELLING_RULES = LEVELS[:3]
LEXICAL_RULES = LEVELS[3:7]


class NameMapping(NamedTuple):
    """Where K names went.

    Attributes:
        class_ids: (K,) long class ids, -1 for names no rule knows.
        rules: K entries of `MAPPING_RULES`.
    """

    class_ids: Tensor
    rules: list[str]


class CategoryVocabulary:
    """The classes of a dataset and the ordered rules that map free-form names to them.

    1. exact: the name is the class's name (the first of a comma list);
    2. normalised: the same but for case, number, punctuation, hyphens or an article;
    3. synonym: another entry of the class's comma list or of the given synonyms, up to
       normalisation;
    4. wordnet synonym, hyponym (a more specific word than the class), hypernym (a more general
       one) and part, see `LexicalClasses`; only if lexical relations are given;
    5. similarity: the nearest class embedding (off unless a `ClassSimilarity` is given);
    6. unmapped.

    Where two classes share a spelling, the one with the smaller id is meant. What the first three
    rules say depends on nothing but the dataset, so they make the headline level.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        is_thing: Sequence[bool],
        *,
        synonyms: Mapping[str, Sequence[str]] | None = None,
        relations: LexicalRelations | None = None,
        similarity: ClassSimilarity | None = None,
    ) -> None:
        """
        Args:
            class_names: C names in the order of the class ids; "a, b" lists synonyms.
            is_thing: C flags, False for stuff.
            synonyms: further names by class name (as in `class_names`, or its first entry).
            relations: enables the lexical rules.
            similarity: enables the similarity rule.

        Raises:
            ValueError: if the two lists differ in length, a class name is empty, or the synonyms
                name a class that is not in the list.
        """
        if len(class_names) != len(is_thing):
            raise ValueError(
                f"Got {len(class_names)} class names but {len(is_thing)} thing flags; "
                "give one flag per class."
            )
        spellings = [[part.strip() for part in name.split(",")] for name in class_names]
        if not all(parts[0] for parts in spellings):
            raise ValueError(f"Got an empty class name in {list(class_names)}; name every class.")
        self.class_names = [parts[0] for parts in spellings]
        self.is_thing = [bool(flag) for flag in is_thing]
        self._similarity = similarity
        self._add_synonyms(spellings, class_names, synonyms or {})
        self._exact: dict[str, int] = {}
        for names in (class_names, self.class_names):
            for class_id, name in enumerate(names):
                self._exact.setdefault(name, class_id)
        self._normalised = _normalised_index([[name] for name in self.class_names])
        self._synonyms = _normalised_index([parts[1:] for parts in spellings])
        self._lexical = None
        if relations is not None:
            self._lexical = LexicalClasses(relations, spellings, self._class_spelled)
        # The same few names come again and again; only the similarity rule sees more than them.
        self._known: dict[str, tuple[int, str]] = {}

    def __len__(self) -> int:
        return len(self.class_names)

    @classmethod
    def from_metadata(
        cls,
        metadata: Metadata,
        similarity: ClassSimilarity | None = None,
        relations: LexicalRelations | None = None,
    ) -> CategoryVocabulary:
        """Vocabulary of a registered dataset; see `class_lists` for what its metadata must have.

        Args:
            metadata: detectron2 metadata.
            similarity: enables the similarity rule.
            relations: enables the lexical rules.

        Raises:
            ValueError: if the evaluator type is unknown or its class list is missing.
        """
        names, is_thing, synonyms = class_lists(metadata)
        return cls(names, is_thing, synonyms=synonyms, relations=relations, similarity=similarity)

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that can be measured here, in the order of `LEVELS`."""
        levels = SPELLING_RULES
        if self._lexical is not None:
            levels += LEXICAL_RULES
        if self._similarity is not None:
            levels += ("similarity",)
        return levels

    @property
    def wants_embeddings(self) -> bool:
        """Whether `map_names` has to be given the embeddings predicted for the names."""
        return self._similarity is not None and self._similarity.embed_names is None

    def map_names(self, names: Sequence[str], embeddings: Tensor | None = None) -> NameMapping:
        """Map names to classes.

        Args:
            names: K names.
            embeddings: (K, d) predicted text embeddings for the similarity rule; None lets that
                rule embed the names. Not used by the other rules.

        Returns:
            class ids and the rule that gave each of them.

        Raises:
            ValueError: if the similarity rule can make no embeddings and gets none.
        """
        class_ids, rules = [], []
        for name in names:
            if name not in self._known:
                self._known[name] = self._map_word(name)
            class_id, rule = self._known[name]
            class_ids.append(class_id)
            rules.append(rule)
        rest = [index for index, rule in enumerate(rules) if rule == UNMAPPED]
        if self._similarity is not None and rest:
            chosen = None if embeddings is None else embeddings[rest]
            nearest = self._similarity.nearest([names[index] for index in rest], chosen)
            for index, class_id in zip(rest, nearest, strict=True):
                if class_id >= 0:
                    class_ids[index], rules[index] = class_id, "similarity"
        return NameMapping(torch.tensor(class_ids, dtype=torch.long), rules)

    def _map_word(self, name: str) -> tuple[int, str]:
        """Class and rule by all rules that look at the name alone."""
        if name.strip() in self._exact:
            return self._exact[name.strip()], "exact"
        normalised = normalise_name(name)
        forms = (normalised, *singular_forms(normalised))
        for rule, index in (("normalised", self._normalised), ("synonym", self._synonyms)):
            for form in forms:
                if form in index:
                    return index[form], rule
        found = self._lexical.find(normalised) if self._lexical is not None else None
        return found or (-1, UNMAPPED)

    def _class_spelled(self, phrase: str) -> int | None:
        """Class that a normalised phrase spells, by its name or a synonym."""
        forms = (phrase, *singular_forms(phrase))
        for index in (self._normalised, self._synonyms):
            for form in forms:
                if form in index:
                    return index[form]
        return None

    def _add_synonyms(
        self,
        spellings: list[list[str]],
        class_names: Sequence[str],
        synonyms: Mapping[str, Sequence[str]],
    ) -> None:
        for class_name, others in synonyms.items():
            ids = [
                class_id
                for class_id, names in enumerate(zip(class_names, self.class_names, strict=True))
                if class_name in names
            ]
            if not ids:
                raise ValueError(
                    f"Got synonyms for {class_name!r}, which is not a class; the classes are "
                    f"{self.class_names}."
                )
            for class_id in ids:
                spellings[class_id].extend(others)


def _normalised_index(names_by_class: Sequence[Sequence[str]]) -> dict[str, int]:
    """Normalised spelling -> class id; a class's own number wins over another's singular."""
    index: dict[str, int] = {}
    for class_id, names in enumerate(names_by_class):
        for name in names:
            index.setdefault(normalise_name(name), class_id)
    for class_id, names in enumerate(names_by_class):
        for name in names:
            for form in singular_forms(normalise_name(name)):
                index.setdefault(form, class_id)
    index.pop("", None)
    return index


@dataclass(frozen=True)
class VocabularySettings:
    """The group TEST.VOCABULARY; `rose_d2/config/defaults.py` explains each key."""

    level: str
    wordnet: str
    similarity: str
    similarity_thresh: float

    @classmethod
    def from_config(cls, cfg: CfgNode) -> VocabularySettings:
        """Read the group."""
        keys = cfg.TEST.VOCABULARY
        return cls(keys.LEVEL, keys.WORDNET, keys.SIMILARITY, keys.SIMILARITY_THRESH)


def build_vocabulary(
    settings: VocabularySettings, metadata: Metadata, bank: TextEmbeddingBank | None = None
) -> CategoryVocabulary:
    """Vocabulary with the rules that the settings enable and this machine can apply.

    Args:
        settings: which rules, and the headline level.
        metadata: of a registered dataset, see `class_lists`.
        bank: makes the text embeddings; needed for the similarity rule only.

    Raises:
        ValueError: if a key has an unknown value, the folder of WordNet has none, the similarity
            rule has no embeddings, or the headline level cannot be measured.
        ModuleNotFoundError: if a folder of WordNet is given and NLTK is not installed.
    """
    if settings.level not in LEVELS:
        raise ValueError(
            f"TEST.VOCABULARY.LEVEL is {settings.level!r}; it is one of {', '.join(LEVELS)}."
        )
    classes = class_lists(metadata)
    first_names = [name.split(",")[0].strip() for name in classes.names]
    vocabulary = CategoryVocabulary.from_metadata(
        metadata,
        similarity=_similarity(settings, first_names, bank),
        relations=load_lexical_relations(settings.wordnet),
    )
    if settings.level not in vocabulary.levels:
        if settings.level == "similarity":
            remedy = "set TEST.VOCABULARY.SIMILARITY to name or predicted"
        else:
            remedy = f"it needs WordNet: {HOW_TO_GET_WORDNET}"
        raise ValueError(
            f"TEST.VOCABULARY.LEVEL is {settings.level!r}, but only the levels "
            f"{', '.join(vocabulary.levels)} can be measured here; {remedy}."
        )
    return vocabulary


def _similarity(
    settings: VocabularySettings, class_names: Sequence[str], bank: TextEmbeddingBank | None
) -> ClassSimilarity | None:
    rule, threshold = settings.similarity, settings.similarity_thresh
    if rule not in SIMILARITY_CHOICES:
        raise ValueError(f"TEST.VOCABULARY.SIMILARITY is {rule!r}; it is empty, name or predicted.")
    if not rule:
        return None
    if not -1 <= threshold <= 1:
        raise ValueError(
            f"TEST.VOCABULARY.SIMILARITY_THRESH is {threshold}; it is a cosine, between -1 and 1."
        )
    if bank is None:
        raise ValueError(
            f"TEST.VOCABULARY.SIMILARITY is {rule!r}, but the classes have no text "
            "embeddings here; give a TextEmbeddingBank, or set the key to an empty string."
        )
    return ClassSimilarity.from_bank(bank, class_names, threshold, embed=rule == "name")


class ClassLists(NamedTuple):
    """C classes in the order of their ids.

    Attributes:
        names: C names as the dataset spells them.
        is_thing: C flags, False for stuff.
        synonyms: further names by class name; None if the dataset lists none.
    """

    names: list[str]
    is_thing: list[bool]
    synonyms: dict[str, list[str]] | None


def class_lists(metadata: Metadata) -> ClassLists:
    """Read the classes of a registered dataset.

    `class_synonyms`, if the metadata has it, gives a list of further names per class, in the order
    of the classes; a class's own name in its list does no harm.

    Args:
        metadata: detectron2 metadata with `evaluator_type` and the class lists of its type:
            `thing_classes` for instance and referring data (the latter may have none),
            `stuff_classes` with all classes in label order for semantic and panoptic data.

    Raises:
        ValueError: if the evaluator type is unknown or its class list is missing.
    """
    evaluator_type = metadata.get("evaluator_type", None)
    if evaluator_type == "refcoco":  # RefCLEF, for one, has expressions but no classes
        names = list(metadata.get("thing_classes", None) or [])
        is_thing = [True] * len(names)
    elif evaluator_type == "coco":
        names = _require_classes(metadata, "thing_classes")
        is_thing = [True] * len(names)
    elif evaluator_type in ("sem_seg", "coco_panoptic_seg"):
        names = _require_classes(metadata, "stuff_classes")
        is_thing = _thing_flags(metadata, names)
    else:
        raise ValueError(
            f"Dataset {metadata.get('name', '?')!r} has the evaluator type {evaluator_type!r}; "
            "a vocabulary can be read from coco, sem_seg, coco_panoptic_seg and refcoco."
        )
    listed = metadata.get("class_synonyms", None)
    synonyms = None if listed is None else dict(zip(names, listed, strict=True))
    return ClassLists(names, is_thing, synonyms)


def with_stuff(metadata: Metadata) -> Metadata:
    """The metadata as a question about things and stuff takes them.

    Args:
        metadata: of a registered dataset.

    Returns:
        For instance data whose `stuff_classes` list all classes, things first: metadata of the
        panoptic kind. Otherwise the metadata themselves.
    """
    things = list(metadata.get("thing_classes", None) or ())
    classes = list(metadata.get("stuff_classes", None) or ())
    is_instance = metadata.get("evaluator_type", None) == "coco"
    if not is_instance or len(classes) <= len(things) or classes[: len(things)] != things:
        return metadata
    synonyms = metadata.get("class_synonyms", None)
    rest: list[list[str]] = [[] for _ in classes[len(things) :]]
    return Metadata(
        evaluator_type="coco_panoptic_seg",
        thing_classes=things,
        stuff_classes=classes,
        thing_dataset_id_to_contiguous_id={index: index for index in range(len(things))},
        class_synonyms=None if synonyms is None else [*synonyms, *rest],
    )


def _require_classes(metadata: Metadata, key: str) -> list[str]:
    names = metadata.get(key, None)
    if not names:
        raise ValueError(
            f"Dataset {metadata.get('name', '?')!r} with evaluator type "
            f"{metadata.get('evaluator_type', None)!r} has no {key} in its metadata; set them "
            "where the dataset is registered."
        )
    return list(names)


def _thing_flags(metadata: Metadata, names: list[str]) -> list[bool]:
    """Things are the contiguous ids of the thing map where there is one, else the thing names."""
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id", None)
    if metadata.evaluator_type == "coco_panoptic_seg" and contiguous is not None:
        things = set(contiguous.values())
        return [class_id in things for class_id in range(len(names))]
    thing_names = set(metadata.get("thing_classes", None) or ())
    return [name in thing_names for name in names]


def counts_at(rule: str, level: str) -> bool:
    """Whether what a rule mapped counts at a level: the rule is the level's or comes before it.

    Args:
        rule: one of `MAPPING_RULES`; "unmapped" counts nowhere.
        level: one of `LEVELS`.

    Raises:
        ValueError: if either is unknown.
    """
    if rule not in MAPPING_RULES or level not in LEVELS:
        raise ValueError(
            f"Got the rule {rule!r} and the level {level!r}; rules are {', '.join(MAPPING_RULES)}, "
            "and every rule but the last is a level."
        )
    return MAPPING_RULES.index(rule) <= LEVELS.index(level)
