"""Regions and class names of a dataset dict, by whichever kind of annotation it carries."""

from __future__ import annotations

from typing import Any

from detectron2.data.catalog import Metadata

from rose_d2.data.annotated_regions import (
    AnnotatedRegions,
    decode_annotations,
    decode_label_map,
    decode_panoptic,
)


def decode_objects(record: dict[str, Any], size: int) -> AnnotatedRegions:
    """The objects of `annotations`, in their order; stuff behind them where it is known.

    Args:
        record: with annotations, and perhaps a panoptic annotation.
        size: side I of the square view.
    """
    objects = decode_annotations(record["annotations"], record["height"], record["width"], size)
    if "pan_seg_file_name" not in record:
        return objects
    return objects.with_stuff_of(decode_segments(record, size))


def decode_segments(record: dict[str, Any], size: int) -> AnnotatedRegions:
    """The things and stuff categories of a panoptic annotation.

    Args:
        record: with pan_seg_file_name and segments_info.
        size: side I of the square view.
    """
    shape = record["height"], record["width"]
    return decode_panoptic(record["pan_seg_file_name"], record["segments_info"], *shape, size)


def decode_dense(record: dict[str, Any], metadata: Metadata, size: int) -> AnnotatedRegions:
    """Everything in the image: segments, or else one region per class of a label map.

    Args:
        record: with pan_seg_file_name and segments_info, or with sem_seg_file_name.
        metadata: of its dataset; says which classes of a label map are stuff.
        size: side I of the square view.
    """
    if "pan_seg_file_name" in record:
        return decode_segments(record, size)
    return decode_classes(record, metadata, size)


def decode_classes(record: dict[str, Any], metadata: Metadata, size: int) -> AnnotatedRegions:
    """One region per class of a label map, whatever objects it consists of.

    Args:
        record: with sem_seg_file_name.
        metadata: of its dataset; says which classes are stuff.
        size: side I of the square view.
    """
    things = set(getattr(metadata, "thing_classes", []))
    stuff_ids = {i for i, name in enumerate(metadata.stuff_classes) if name not in things}
    shape = record["height"], record["width"]
    return decode_label_map(
        record["sem_seg_file_name"],
        *shape,
        size,
        ignore_label=metadata.ignore_label,
        stuff_ids=stuff_ids,
    )


def decode_any(
    record: dict[str, Any], metadata: Metadata, size: int
) -> tuple[AnnotatedRegions, list[str]]:
    """Regions of a dataset dict of any task, and the class names they index.

    Objects come first: a referring expression points at them, and stuff that a panoptic
    annotation adds to them has no class.

    Args:
        record: a dataset dict with masks.
        metadata: of its dataset.
        size: side I of the square view.

    Returns:
        The regions, and names by contiguous class (none for data without categories).

    Raises:
        ValueError: the dataset dict has no masks.
    """
    if "annotations" in record:
        return decode_objects(record, size), list(getattr(metadata, "thing_classes", []))
    if "pan_seg_file_name" in record or "sem_seg_file_name" in record:
        return decode_dense(record, metadata, size), list(metadata.stuff_classes)
    raise ValueError(
        f"The dataset dict of {record.get('file_name')!r} has none of annotations, "
        "pan_seg_file_name and sem_seg_file_name; take a dataset with masks for refinement and "
        "region prompts."
    )
