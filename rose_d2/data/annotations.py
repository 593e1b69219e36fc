"""What annotators drew on an image, decoded to masks in the language model's view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.data import Metadata

from rose_d2.data.image_io import ImageReadError, opened_image
from rose_d2.structures.mask_codec import colours_to_ids, decode_mask

# Where a list of colours has no class of one of these, it is unlabelled: VOC's outlines, and white.
_VOID_COLOURS = ((224, 224, 192), (255, 255, 255))


@dataclass(frozen=True)
class AnnotatedRegions:
    """R regions of one image; every array has R rows unless said otherwise.

    Attributes:
        masks: bool (R, I, I). A region that is smaller than the view's grid may be empty.
        classes: int64 (R,) contiguous class; -1 where the annotation has no category.
        is_stuff: bool (R,).
        ignore: bool (I, I): crowd and unlabelled pixels.
    """

    masks: np.ndarray
    classes: np.ndarray
    is_stuff: np.ndarray
    ignore: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)

    def flipped(self) -> AnnotatedRegions:
        """The regions of the mirrored image."""
        return replace(
            self,
            masks=np.ascontiguousarray(self.masks[:, :, ::-1]),
            ignore=np.ascontiguousarray(self.ignore[:, ::-1]),
        )

    def with_stuff_of(self, panoptic: AnnotatedRegions) -> AnnotatedRegions:
        """Add another annotation's stuff regions, behind these objects.

        Their classes become -1, since the two annotations may number classes differently.

        Args:
            panoptic: regions of the same image in the same view.
        """
        stuff = panoptic.masks[panoptic.is_stuff]
        objects = self.masks.any(axis=0)
        return AnnotatedRegions(
            masks=np.concatenate([self.masks, stuff]),
            classes=np.concatenate([self.classes, np.full(len(stuff), -1)]),
            is_stuff=np.concatenate([self.is_stuff, np.ones(len(stuff), dtype=bool)]),
            ignore=self.ignore | (panoptic.ignore & ~objects),
        )


def decode_annotations(
    annotations: list[dict], height: int, width: int, size: int
) -> AnnotatedRegions:
    """Decode COCO-style objects (polygons or RLE), one region each, in order.

    Crowd annotations keep their place as a region without pixels, so that positions in
    `annotations` stay valid, and their pixels become ignored.

    Args:
        annotations: detectron2 annotations with "segmentation", "category_id", "iscrowd".
        height: of the image in pixels.
        width: of the image in pixels.
        size: side I of the square view.
    """
    masks = np.zeros((len(annotations), size, size), dtype=bool)
    ignore = np.zeros((size, size), dtype=bool)
    for index, annotation in enumerate(annotations):
        view = square_view(decode_mask(annotation.get("segmentation"), height, width), size)
        if annotation.get("iscrowd", 0):
            ignore |= view
        else:
            masks[index] = view
    # Pixels of an object inside a crowd region are known.
    ignore &= ~masks.any(axis=0)
    classes = [a["category_id"] if a.get("category_id") is not None else -1 for a in annotations]
    return AnnotatedRegions(
        masks=masks,
        classes=np.asarray(classes, dtype=np.int64),
        is_stuff=np.zeros(len(annotations), dtype=bool),
        ignore=ignore,
    )


def decode_panoptic(
    path: str, segments_info: list[dict], height: int, width: int, size: int
) -> AnnotatedRegions:
    """Decode a COCO panoptic PNG: one region per thing, one per stuff category.

    Args:
        path: PNG whose colours spell segment ids (R + 256 G + 256 * 256 B).
        segments_info: dicts with "id", "category_id" (contiguous), "isthing", "iscrowd".
        height: of the image in pixels.
        width: of the image in pixels.
        size: side I of the square view.

    Raises:
        ImageReadError: the PNG is missing, damaged or of another size than the image.
    """
    colours = _read_segment_colours(path, (height, width))
    ids = colours_to_ids(square_view(colours, size).astype(np.int32))  # (I, I)
    things = [s for s in segments_info if s["isthing"] and not s.get("iscrowd", 0)]
    stuff: dict[int, list[int]] = {}
    for segment in segments_info:
        if not segment["isthing"] and not segment.get("iscrowd", 0):
            stuff.setdefault(segment["category_id"], []).append(segment["id"])
    groups = [([s["id"]], s["category_id"]) for s in things]
    groups += [(segment_ids, category) for category, segment_ids in stuff.items()]
    masks = np.zeros((len(groups), size, size), dtype=bool)
    for mask, (segment_ids, _) in zip(masks, groups, strict=True):
        for segment_id in segment_ids:
            mask |= ids == segment_id
    return AnnotatedRegions(
        masks=masks,
        classes=np.asarray([category for _, category in groups], dtype=np.int64),
        is_stuff=np.arange(len(groups)) >= len(things),
        # Void, crowd segments and ids that segments_info does not list.
        ignore=~masks.any(axis=0),
    )


def decode_label_map(
    path: str,
    height: int,
    width: int,
    size: int,
    *,
    ignore_label: int,
    stuff_ids: set[int],
    num_classes: int,
    colours: Sequence[Sequence[int]] | None = None,
) -> AnnotatedRegions:
    """Decode a label PNG without instances: one region per class.

    Args:
        path: PNG whose grey value is the contiguous class.
        height: of the image in pixels.
        width: of the image in pixels.
        size: side I of the square view.
        ignore_label: grey value of unlabelled pixels.
        stuff_ids: the contiguous classes that are stuff.
        num_classes: see `read_labels`.
        colours: see `read_labels`.

    Raises:
        ImageReadError: the PNG cannot be used, see `read_labels`.
    """
    labels = read_labels(
        path,
        (height, width),
        ignore_label=ignore_label,
        num_classes=num_classes,
        colours=colours,
    )
    labels = square_view(labels, size)
    classes = np.setdiff1d(np.unique(labels), [ignore_label]).astype(np.int64)
    return AnnotatedRegions(
        masks=labels[None] == classes[:, None, None],
        classes=classes,
        is_stuff=np.asarray([c in stuff_ids for c in classes.tolist()], dtype=bool),
        ignore=labels == ignore_label,
    )


def square_view(values: np.ndarray, size: int) -> np.ndarray:
    """Values of an image's pixels in the language model's square view.

    Args:
        values: (H, W) or (H, W, channels).
        size: side I of the view.

    Returns:
        (I, I) or (I, I, channels): at each pixel the value nearest to its centre.
    """
    rows, columns = (_nearest(length, size) for length in values.shape[:2])
    if values.flags.f_contiguous:  # masks of pycocotools: whole columns lie together
        return values[:, columns][rows]
    return values[rows][:, columns]


def read_labels(
    path: str,
    size: tuple[int, int],
    *,
    ignore_label: int,
    num_classes: int,
    colours: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """Read a label image: the class of every pixel.

    Args:
        path: grey or palette image whose values are classes; where the classes have colours, also
            an image of these colours. Equal channels are taken for grey.
        size: (height, width) of the image it belongs to.
        ignore_label: value of unlabelled pixels.
        num_classes: C; values from 0 to C - 1 are allowed.
        colours: RGB of every class, 0 to 255, or None.

    Returns:
        int64 (H, W), 0 to C - 1 and `ignore_label`.

    Raises:
        ImageReadError: it is missing, damaged, of another size, in colours that no class has, or
            has a value that is no class; the message names the file and what is wrong.
    """
    values = _read_values(path, size)
    if values.ndim == 3:
        values = _labels_of_colours(values[:, :, :3], path, ignore_label, colours)
    strange = values[((values < 0) | (values >= num_classes)) & (values != ignore_label)]
    if strange.size:
        raise ImageReadError(
            f"The label image {path!r} has the labels {np.unique(strange)[:10].tolist()}; allowed "
            f"are 0 to {num_classes - 1} and the ignore label {ignore_label}. Prepare the dataset "
            "again, or correct its list of classes."
        )
    return values


def _read_values(path: str, size: tuple[int, int]) -> np.ndarray:
    """Values of a label PNG, int64 (H, W) or (H, W, channels)."""
    try:
        with opened_image(path) as image:
            if (image.height, image.width) != tuple(size):
                raise ImageReadError(
                    f"The label image {path!r} has size (height, width) "
                    f"{(image.height, image.width)} but its image {tuple(size)}; prepare the "
                    "dataset again."
                )
            return np.asarray(image).astype(np.int64)
    except FileNotFoundError as error:
        raise ImageReadError(f"The label image {path!r} is missing.") from error


def _read_segment_colours(path: str, size: tuple[int, int]) -> np.ndarray:
    """Colours of a panoptic PNG, int64 (H, W, 3 or 4)."""
    colours = _read_values(path, size)
    if colours.ndim != 3 or colours.shape[2] < 3:
        raise ImageReadError(
            f"The panoptic image {path!r} has one channel; its colours have to spell segment ids."
        )
    return colours


def _labels_of_colours(
    values: np.ndarray,
    path: str,
    ignore_label: int,
    colours: Sequence[Sequence[int]] | None,
) -> np.ndarray:
    """Classes (H, W) of an image with channels (H, W, C)."""
    if values.shape[2] < 3 or (values == values[:, :, :1]).all():
        return values[:, :, 0]
    if colours is None:
        raise ImageReadError(
            f"The label image {path!r} has {values.shape[2]} channels with different values; a "
            "grey or palette PNG is needed, whose values are classes, or a list of classes with "
            "their colours."
        )
    ids = colours_to_ids(values)
    labels = np.full(ids.shape, -1, dtype=np.int64)
    for colour in _VOID_COLOURS:
        labels[ids == colours_to_ids(np.array(colour))] = ignore_label
    for class_id, colour in enumerate(colours):
        labels[ids == colours_to_ids(np.array(colour))] = class_id
    if (labels < 0).any():
        stray = np.unique(values[labels < 0], axis=0)[:5].tolist()
        raise ImageReadError(
            f"The label image {path!r} has the colours {stray}, which no class of the list has."
        )
    return labels


def _nearest(length: int, size: int) -> np.ndarray:
    """Source index of each of `size` target pixels, pixel centres matched."""
    return ((np.arange(size) + 0.5) * (length / size)).astype(np.int64)


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
    return decode_label_map(
        record["sem_seg_file_name"],
        record["height"],
        record["width"],
        size,
        ignore_label=metadata.ignore_label,
        stuff_ids=stuff_ids,
        num_classes=len(metadata.stuff_classes),
        colours=metadata.get("label_colors", None),
    )


def load_labels(record: dict[str, Any], metadata: Metadata) -> np.ndarray:
    """The class of every pixel of a semantic dataset dict at its original size, see `read_labels`.

    Args:
        record: with sem_seg_file_name, height and width.
        metadata: of its dataset.
    """
    return read_labels(
        record["sem_seg_file_name"],
        (record["height"], record["width"]),
        ignore_label=metadata.ignore_label,
        num_classes=len(metadata.stuff_classes),
        colours=metadata.get("label_colors", None),
    )


def check_label_images(record: dict[str, Any], metadata: Metadata) -> None:
    """Read the label images that a dataset dict is scored against.

    Args:
        record: a dataset dict; one with `annotations` is scored against those alone.
        metadata: of its dataset.

    Raises:
        ImageReadError: one is missing, damaged, of another size, or has values that mean nothing.
    """
    if "annotations" in record:
        return
    size = record["height"], record["width"]
    if "pan_seg_file_name" in record:
        _read_segment_colours(record["pan_seg_file_name"], size)
    if "sem_seg_file_name" in record:
        load_labels(record, metadata)


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
