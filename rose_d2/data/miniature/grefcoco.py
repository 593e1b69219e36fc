"""gRefCOCO in miniature: RefCOCO's references, and some about several objects or about nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rose_d2.data.datasets.plain_pickle import load_plain_pickle
from rose_d2.data.datasets.refer_instances import read_json

# No scene has one.
ABSENT_NAME = "zeppelin"
_NOTHING = -1


def write_grefcoco(root: str | Path) -> None:
    """Write grefcoco/{instances.json,grefs(unc).json}; its images are RefCOCO's.

    As in the real data `ann_id` and `category_id` are lists, [-1] where a sentence is about
    nothing, and a list may name a crowd.

    Args:
        root: the datasets folder, with the miniature of RefCOCO in it.
    """
    source, folder = Path(root) / "refcoco", Path(root) / "grefcoco"
    folder.mkdir(parents=True, exist_ok=True)
    instances = read_json(source / "instances.json")
    instances["info"] = {"description": "miniature of grefcoco"}
    names = {category["id"]: category["name"] for category in instances["categories"]}
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in instances["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    references = load_plain_pickle(source / "refs(unc).p")
    generalised = [_reference(r, [r["ann_id"]], [r["category_id"]], _texts(r)) for r in references]
    first_of_image: dict[int, dict[str, Any]] = {}
    for reference in references:
        first_of_image.setdefault(reference["image_id"], reference)
    for reference in first_of_image.values():
        generalised += _generalise(reference, objects[reference["image_id"]], names)
    _number(generalised)
    for name, content in (("instances", instances), ("grefs(unc)", generalised)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _texts(reference: dict[str, Any]) -> list[str]:
    return [sentence["sent"] for sentence in reference["sentences"]]


def _generalise(
    reference: dict[str, Any], objects: list[dict[str, Any]], names: dict[int, str]
) -> Iterator[dict[str, Any]]:
    """References to everything and to nothing in the image of a reference."""
    categories = [annotation["category_id"] for annotation in objects]
    every = " and ".join(names[category] for category in categories)
    ids = [annotation["id"] for annotation in objects]
    if len(ids) > 1:
        yield _reference(reference, ids, categories, [f"the {every}", f"all {len(ids)} objects"])
    yield _reference(reference, [_NOTHING], [_NOTHING], [f"the {ABSENT_NAME}"])


def _reference(
    model: dict[str, Any], ann_ids: list[int], category_ids: list[int], texts: list[str]
) -> dict[str, Any]:
    """A record without ids of its own, of the same image and split as another."""
    return {
        "image_id": model["image_id"],
        "split": model["split"],
        "file_name": model["file_name"],
        "ann_id": ann_ids,
        "category_id": category_ids,
        "no_target": ann_ids == [_NOTHING],
        "sentences": [{"tokens": text.split(), "raw": text, "sent": text} for text in texts],
    }


def _number(references: list[dict[str, Any]]) -> None:
    """Give references and sentences their ids."""
    sent_id = 0
    for ref_id, reference in enumerate(references):
        for sentence in reference["sentences"]:
            sentence["sent_id"] = sent_id
            sent_id += 1
        reference["ref_id"] = ref_id
        reference["sent_ids"] = [sentence["sent_id"] for sentence in reference["sentences"]]
