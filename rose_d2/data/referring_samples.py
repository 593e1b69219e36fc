"""What counts as one sample of a referring evaluation: a sentence, or a reference with all of its.

The test loader and the evaluator both call `referring_samples`, so the model answers exactly the
keys that are expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REFERRING_PROTOCOLS = ("per_sentence", "per_ref")
# Takes the place of the sentence id where a sample has all sentences of its reference.
ALL_SENTENCES = -1


def sample_key(sample: dict[str, Any]) -> tuple[int, int]:
    """What a referring sample is known by: (ref_id, sent_id)."""
    return int(sample["ref_id"]), int(sample["sent_id"])


def referring_samples(
    sentence_dicts: Sequence[dict[str, Any]], protocol: str
) -> list[dict[str, Any]]:
    """The samples of a referring evaluation.

    Args:
        sentence_dicts: of a referring dataset, one per (reference, sentence).
        protocol: TEST.REFERRING.PROTOCOL. "per_sentence" takes the dicts as they are. "per_ref"
            makes one sample of a reference, as PSALM does (zamling/PSALM:
            psalm/train/train_datasets.py, RefCOCO_dataset): its `sentence` is all sentences in
            their order, each followed by a period, and its `sent_id` is `ALL_SENTENCES`.

    Returns:
        Dataset dicts in the order of the (first) sentences. The given ones are not modified.

    Raises:
        ValueError: if the protocol is unknown, or the sentences of one reference are about
            different objects.
    """
    if protocol not in REFERRING_PROTOCOLS:
        raise ValueError(
            f"TEST.REFERRING.PROTOCOL is {protocol!r}; take one of "
            f"{', '.join(REFERRING_PROTOCOLS)}."
        )
    if protocol == "per_sentence":
        return list(sentence_dicts)
    references: dict[int, list[dict[str, Any]]] = {}
    for record in sentence_dicts:
        references.setdefault(int(record["ref_id"]), []).append(record)
    return [_merge(records) for records in references.values()]


def _merge(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One sample of all sentences of one reference."""
    first = records[0]
    for record in records[1:]:
        for key in ("image_id", "target_indices"):
            if record[key] != first[key]:
                raise ValueError(
                    f"Reference {first['ref_id']} has sentences with the {key} {first[key]} and "
                    f"{record[key]}, which cannot be one sample; give each object its own ref_id, "
                    "or set TEST.REFERRING.PROTOCOL to per_sentence."
                )
    sentence = " ".join(f"{record['sentence']}." for record in records)
    return first | {"sentence": sentence, "sent_id": ALL_SENTENCES}
