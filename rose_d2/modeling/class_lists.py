"""The classes a dataset's metadata lists."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.data import Metadata


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
