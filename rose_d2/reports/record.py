"""What a number or a weight file came from: config hash, checksums, versions, results.json."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from rose_d2.config.fingerprint import config_hash, file_sha256, library_versions
from rose_d2.files import write_text
from rose_d2.vocabulary.vocabulary import LEXICAL_RULES

LEVEL_WORDS = {
    "exact": "the class name itself",
    "normalised": "the same up to case, number, punctuation, hyphens and articles",
    "synonym": "the dataset's own synonyms",
    "wordnet synonym": "words that share a WordNet noun meaning with the class",
    "hyponym": "more specific words (WordNet: poodle for dog)",
    "hypernym": "more general words (WordNet: animal for dog)",
    "part": "names of parts (WordNet: wheel for car)",
    "similarity": "the class nearest in text embedding, if it is near enough",
}
"""What each mapping rule adds to the names that count."""
_SHORT = {
    "exact": "exact class names",
    "normalised": "normalised names",
    "synonym": "the dataset's own synonyms",
    "wordnet synonym": "WordNet synonyms",
    "hyponym": "WordNet hyponyms",
    "hypernym": "WordNet hypernyms",
    "part": "WordNet parts",
    "similarity": "text similarity",
}
_CANDIDATE_WORDS = {
    "": "Names were free: the model was given no class names.",
    "prompt": "The class names of the dataset were listed in the instruction; names were free.",
    "decode": "Names were decoded along the dataset's class names, which the instruction did not "
    "list; what fitted none of them was left out.",
    "both": "The class names of the dataset were listed in the instruction and names were decoded "
    "along them; what fitted none of them was left out.",
}
_SIMILARITY_WORDS = {
    "": "Text similarity was not used.",
    "name": "Names that no other rule knew went to the nearest class by the embedding of the name",
    "predicted": "Names that no other rule knew went to the nearest class by the embedding the "
    "patch predicted",
}
_REFERRING_WORDS = {
    "per_sentence": "Every sentence was asked and scored alone (per sentence).",
    "per_ref": "All sentences of a reference were asked in one prompt, with one score per "
    "reference (per_ref): not comparable with per-sentence numbers.",
}


def run_record(
    cfg: CfgNode,
    results: Mapping[str, Any],
    weights_file: str | None = None,
    checkpoint_sha256: str | None = None,
) -> dict[str, Any]:
    """Everything results.json says; two runs of one thing give the same, there is no date in it.

    Args:
        cfg: the config of the run.
        results: dataset name -> task -> metric -> number. NaN and infinity become null.
        weights_file: the safetensors file the model was loaded from; None if it is not here.
        checkpoint_sha256: of the weights, where it is known already; None reads the file.

    Returns:
        The content of the file: `results`, `protocol` per dataset (see `dataset_protocol`),
        `config_hash`, `checkpoint`, `dataset_sizes` (images, or sentences) and `versions`.
    """
    if checkpoint_sha256 is None and weights_file is not None:
        checkpoint_sha256 = file_sha256(weights_file)
    return {
        "results": _finite(results),
        "protocol": {name: dataset_protocol(cfg, tasks) for name, tasks in results.items()},
        "config_hash": config_hash(cfg),
        "checkpoint": {"path": weights_file, "sha256": checkpoint_sha256},
        "dataset_sizes": {name: len(DatasetCatalog.get(name)) for name in results},
        "versions": library_versions(),
    }


def write_results(
    cfg: CfgNode, results: Mapping[str, Any], weights_file: str, folder: str | None = None
) -> str:
    """Write `results.json`, see `run_record`.

    Args:
        cfg: the config of the run.
        results: dataset name -> task -> metric -> number.
        weights_file: the safetensors file the model was loaded from.
        folder: where to; None is `OUTPUT_DIR`.

    Returns:
        The path of the file.
    """
    return write_record(run_record(cfg, results, weights_file), folder or cfg.OUTPUT_DIR)


def write_record(record: Mapping[str, Any], folder: str) -> str:
    """Write a `run_record` as `results.json` into a folder, at once or not at all.

    Returns:
        The path of the file.
    """
    path = os.path.join(folder, "results.json")
    write_text(path, json.dumps(record, indent=2) + "\n")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def is_referring(tasks: Mapping[str, Any]) -> bool:
    """Whether results come from referring expressions, where no class is named.

    Args:
        tasks: task -> metric -> number of one dataset.
    """
    return any("referring" in task for task in tasks)


def measured_levels(tasks: Mapping[str, Any]) -> list[str]:
    """The mapping levels a dataset was scored at, in order; empty for results without levels.

    Args:
        tasks: task -> metric -> number of one dataset.
    """
    levels: dict[str, None] = {}
    for task, metrics in tasks.items():
        # Refinement is scored at the headline level only, so the levels are those before it.
        if task.removesuffix("_before").endswith("_levels"):
            levels.update(dict.fromkeys(metrics))
    return list(levels)


def level_in_words(level: str) -> str:
    """Which names count at a level, with all rules before it.

    Args:
        level: a mapping rule.
    """
    if level == "exact":
        return "only exact class names count"
    return f"names count up to the rule “{level}” ({_SHORT.get(level, level)})"


def dataset_protocol(cfg: CfgNode, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Describe how the numbers of one dataset were made.

    Args:
        cfg: the config of the run.
        tasks: task -> metric -> number of the dataset; they tell which rules could be used.

    Returns:
        For referring data `referring_protocol` and `multi_target`; for the others
        `headline_level`, `levels`, `wordnet`, `similarity`, `similarity_threshold` (None when
        off) and `candidates`. For all `refinement_box` (TEST.REFINEMENT.BOX) and `in_words`,
        sentences that say the same.
    """
    box = {"refinement_box": cfg.TEST.REFINEMENT.BOX}
    if is_referring(tasks):
        return _referring_protocol(cfg) | box
    vocabulary = cfg.TEST.VOCABULARY
    levels = measured_levels(tasks)
    facts = {
        "headline_level": vocabulary.LEVEL,
        "levels": levels,
        "wordnet": any(level in LEXICAL_RULES for level in levels),
        "similarity": vocabulary.SIMILARITY,
        "similarity_threshold": vocabulary.SIMILARITY_THRESH if vocabulary.SIMILARITY else None,
        "candidates": cfg.TEST.CANDIDATES,
    }
    return facts | box | {"in_words": _dense_words(facts)}


def _referring_protocol(cfg: CfgNode) -> dict[str, Any]:
    protocol, multi_target = cfg.TEST.REFERRING.PROTOCOL, cfg.TEST.REFERRING.MULTI_TARGET
    words = [
        _REFERRING_WORDS.get(protocol, f"Referring protocol: {protocol}."),
        "The answer was every instance above the score threshold, possibly none."
        if multi_target
        else "The answer was the mask of the one patch with the highest objectness.",
        "Nothing of the answer was in the prompt; masks were compared at the original size of "
        "the image.",
    ]
    return {
        "referring_protocol": protocol,
        "multi_target": multi_target,
        "in_words": " ".join(words),
    }


def _dense_words(facts: Mapping[str, Any]) -> str:
    level = facts["headline_level"]
    words = [
        _CANDIDATE_WORDS.get(facts["candidates"], f"Class candidates: {facts['candidates']}."),
        f"In the headline numbers {level_in_words(level)}.",
    ]
    if facts["levels"]:
        used = "" if facts["wordnet"] else "not "
        words.append(f"WordNet was {used}used for the levels beyond.")
        similarity = _SIMILARITY_WORDS.get(
            facts["similarity"], f"Text similarity: {facts['similarity']}."
        )
        if facts["similarity_threshold"] is not None:
            similarity += f", if its cosine was at least {facts['similarity_threshold']:g}."
        words.append(similarity)
    return " ".join(words)
