"""From the names the model writes to the classes of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.data import Metadata
from torch import Tensor

from rose_d2.modeling.name_normalisation import normalise_name, singular_forms

UNMAPPED = "unmapped"
# In the order in which they are tried; a name is mapped by the first rule that knows it.
MAPPING_RULES = ("exact", "normalised", "synonym", "similarity", UNMAPPED)


class NameMapping(NamedTuple):
    """Where K names went.

    Attributes:
        class_ids: (K,) long class ids, -1 for names no rule knows.
        rules: K entries of `MAPPING_RULES`.
    """

    class_ids: Tensor
    rules: list[str]


@dataclass(frozen=True)
class ClassSimilarity:
    """The last resort of the mapping: the nearest class embedding, if it is near enough.

    Attributes:
        bank: (C, d) class embeddings, any norm.
        threshold: smallest cosine similarity that counts as a match.
        embed_names: maps names to (K, d) embeddings; None if predicted embeddings are always given.
    """

    bank: Tensor
    threshold: float
    embed_names: Callable[[Sequence[str]], Tensor] | None = None

    def nearest(self, names: Sequence[str], embeddings: Tensor | None) -> list[int]:
        """Class of each name, -1 below the threshold.

        Args:
            names: K names.
            embeddings: (K, d) embeddings predicted for them; None embeds the names.

        Raises:
            ValueError: if there are neither embeddings nor a function to make them.
        """
        if embeddings is None:
            if self.embed_names is None:
                raise ValueError(
                    "Got no embeddings for the similarity rule; pass them to map_names, or "
                    "construct ClassSimilarity with embed_names."
                )
            embeddings = self.embed_names(names)
        bank = F.normalize(self.bank.float(), dim=-1)
        cosines = F.normalize(embeddings.float(), dim=-1) @ bank.T.to(embeddings.device)  # (K, C)
        best, class_ids = cosines.max(dim=-1)
        return torch.where(best >= self.threshold, class_ids, -1).tolist()


class CategoryVocabulary:
    """The classes of a dataset and the ordered rules that map free-form names to them.

    1. exact: the name is the class's name (the first of a comma list);
    2. normalised: the same but for case, number, punctuation, hyphens or an article;
    3. synonym: another entry of the class's comma list or of the given synonyms, up to
       normalisation;
    4. similarity: the nearest class embedding (off unless a `ClassSimilarity` is given);
    5. unmapped.

    Where two classes share a spelling, the one with the smaller id is meant.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        is_thing: Sequence[bool],
        *,
        synonyms: Mapping[str, Sequence[str]] | None = None,
        similarity: ClassSimilarity | None = None,
    ) -> None:
        """
        Args:
            class_names: C names in the order of the class ids; "a, b" lists synonyms.
            is_thing: C flags, False for stuff.
            synonyms: further names by class name (as in `class_names`, or its first entry).
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

    def __len__(self) -> int:
        return len(self.class_names)

    @classmethod
    def from_metadata(
        cls, metadata: Metadata, similarity: ClassSimilarity | None = None
    ) -> CategoryVocabulary:
        """Vocabulary of a registered dataset.

        `class_synonyms`, if the metadata has it, gives a list of further names per class, in the
        order of the classes; a class's own name in its list does no harm.

        Args:
            metadata: detectron2 metadata with `evaluator_type` and the class lists of its type:
                `thing_classes` for instance and referring data (the latter may have none),
                `stuff_classes` with all classes in label order for semantic and panoptic data.
            similarity: enables the similarity rule.

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
        return cls(names, is_thing, synonyms=synonyms, similarity=similarity)

    def map_names(self, names: Sequence[str], embeddings: Tensor | None = None) -> NameMapping:
        """Map names to classes.

        Args:
            names: K names.
            embeddings: (K, d) predicted text embeddings for the similarity rule; None lets that
                rule embed the names. Not used by the other rules.

        Returns:
            class ids and the rule that gave each of them.
        """
        class_ids, rules = [], []
        for name in names:
            class_id, rule = self._map_by_spelling(name)
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

    def _map_by_spelling(self, name: str) -> tuple[int, str]:
        if name.strip() in self._exact:
            return self._exact[name.strip()], "exact"
        normalised = normalise_name(name)
        forms = (normalised, *singular_forms(normalised))
        for rule, index in (("normalised", self._normalised), ("synonym", self._synonyms)):
            for form in forms:
                if form in index:
                    return index[form], rule
        return -1, UNMAPPED

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


def _require_classes(metadata: Metadata, key: str) -> list[str]:
    names = metadata.get(key, None)
    if not names:
        raise ValueError(
            f"Dataset {metadata.get('name', '?')!r} with evaluator type "
            f"{metadata.get('evaluator_type', None)!r} has no {key} in its metadata; set them "
            "where the dataset is registered."
        )
    return list(names)


def _thing_flags(metadata: Metadata, names: Sequence[str]) -> list[bool]:
    """Things are the contiguous ids of the thing map where there is one, else the thing names."""
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id", None)
    if metadata.evaluator_type == "coco_panoptic_seg" and contiguous is not None:
        things = set(contiguous.values())
        return [class_id in things for class_id in range(len(names))]
    thing_names = set(metadata.get("thing_classes", None) or ())
    return [name in thing_names for name in names]
