"""The vocabulary of a dataset as the TEST.VOCABULARY keys want it."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import Metadata

from rose_d2.modeling.class_lists import class_lists
from rose_d2.modeling.class_similarity import ClassSimilarity
from rose_d2.modeling.lexical_relations import load_lexical_relations
from rose_d2.modeling.mapping_rules import LEVELS
from rose_d2.modeling.text_embeddings import TextEmbeddingBank
from rose_d2.modeling.vocabulary import CategoryVocabulary
from rose_d2.modeling.wordnet_files import HOW_TO_GET_WORDNET

SIMILARITY_CHOICES = ("", "name", "predicted")


def build_vocabulary(
    cfg: CfgNode, metadata: Metadata, bank: TextEmbeddingBank | None = None
) -> CategoryVocabulary:
    """Vocabulary with the rules that the config enables and this machine can apply.

    Args:
        cfg: read are TEST.VOCABULARY.{LEVEL, WORDNET, SIMILARITY, SIMILARITY_THRESH}.
        metadata: of a registered dataset, see `class_lists`.
        bank: makes the text embeddings; needed for the similarity rule only.

    Raises:
        ValueError: if a key has an unknown value, the folder of WordNet has none, the similarity
            rule has no embeddings, or the headline level cannot be measured.
        ModuleNotFoundError: if a folder of WordNet is given and NLTK is not installed.
    """
    keys = cfg.TEST.VOCABULARY
    if keys.LEVEL not in LEVELS:
        raise ValueError(
            f"TEST.VOCABULARY.LEVEL is {keys.LEVEL!r}; it is one of {', '.join(LEVELS)}."
        )
    classes = class_lists(metadata)
    first_names = [name.split(",")[0].strip() for name in classes.names]
    vocabulary = CategoryVocabulary.from_metadata(
        metadata,
        similarity=_similarity(keys, first_names, bank),
        relations=load_lexical_relations(keys.WORDNET),
    )
    if keys.LEVEL not in vocabulary.levels:
        if keys.LEVEL == "similarity":
            remedy = "set TEST.VOCABULARY.SIMILARITY to name or predicted"
        else:
            remedy = f"it needs WordNet: {HOW_TO_GET_WORDNET}"
        raise ValueError(
            f"TEST.VOCABULARY.LEVEL is {keys.LEVEL!r}, but only the levels "
            f"{', '.join(vocabulary.levels)} can be measured here; {remedy}."
        )
    return vocabulary


def _similarity(
    keys: CfgNode, class_names: Sequence[str], bank: TextEmbeddingBank | None
) -> ClassSimilarity | None:
    if keys.SIMILARITY not in SIMILARITY_CHOICES:
        raise ValueError(
            f"TEST.VOCABULARY.SIMILARITY is {keys.SIMILARITY!r}; it is empty, name or predicted."
        )
    if not keys.SIMILARITY:
        return None
    if not -1 <= keys.SIMILARITY_THRESH <= 1:
        raise ValueError(
            f"TEST.VOCABULARY.SIMILARITY_THRESH is {keys.SIMILARITY_THRESH}; it is a cosine, "
            "between -1 and 1."
        )
    if bank is None:
        raise ValueError(
            f"TEST.VOCABULARY.SIMILARITY is {keys.SIMILARITY!r}, but the classes have no text "
            "embeddings here; give a TextEmbeddingBank, or set the key to an empty string."
        )
    return ClassSimilarity.from_bank(
        bank, class_names, keys.SIMILARITY_THRESH, embed=keys.SIMILARITY == "name"
    )
