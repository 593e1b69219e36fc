"""Loader of the REFER layout: RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and the clip-art benchmark.

A folder holds `instances.json` (COCO instances) and one `refs(<split_by>).p` per way of splitting,
a pickle of plain lists and dicts. A pickle can run any code when it is opened, so it goes through
an unpickler that knows no class and no function at all.
"""

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

REFERENCE_KEYS = ("ref_id", "ann_id", "image_id", "split", "sentences")


class _PlainUnpickler(pickle.Unpickler):
    """Accepts only what needs no import: lists, dicts, tuples, text, bytes and numbers."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def load_plain_pickle(path: str | Path) -> Any:
    """Reads a pickle of built-in containers without ever running code from it.

    Args:
        path: the file.

    Returns:
        The content.

    Raises:
        ValueError: if the file is no pickle, is truncated, or asks for any class or function.
    """
    content = Path(path).read_bytes()
    try:
        return _PlainUnpickler(io.BytesIO(content)).load()
    except UnicodeDecodeError:
        # Files written by Python 2 hold byte strings that may not be ASCII.
        return _load_python2_pickle(content, path)
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _load_python2_pickle(content: bytes, path: str | Path) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is not a plain pickle of lists, dicts, text and numbers ({error}); it was not "
        "executed. Referring annotations never need more: get the file again from its source."
    )


def in_split(label: str, split: str) -> bool:
    """Whether a reference belongs to a split, by the rules of the REFER toolkit.

    Args:
        label: the reference's `split` field; combined labels such as "testAB" exist.
        split: "train", "val", any clip-art split, "test", or "testA", "testB", "testC".
    """
    if split in ("testA", "testB", "testC"):
        return label.startswith("test") and split[-1] in label[len("test") :]
    return "test" in label if split == "test" else label == split


def load_refer(
    folder: str | Path,
    split_by: str,
    split: str,
    image_root: str | Path,
    thing_ids: Mapping[int, int] | None = None,
) -> list[dict[str, Any]]:
    """Reads one split of a dataset in the REFER layout; no image and no mask is opened.

    Args:
        folder: holds instances.json and refs(<split_by>).p.
        split_by: who made the splits, e.g. "unc", "google" or "umd".
        split: see `in_split`.
        image_root: folder that the images' `file_name` in instances.json is relative to.
        thing_ids: category id -> contiguous id; by default the sorted ids of instances.json.

    Returns:
        One dict per (reference, sentence), ordered by image, reference and sentence: `file_name`,
        `image_id`, `height`, `width`, `annotations` (every annotated object of the image),
        `target_indices` (list of positions in `annotations`), `sentence`, `ref_id`, `sent_id`.
        Dicts of one image share their annotations list.

    Raises:
        ValueError: if the pickle is hostile, malformed or has no reference of the split.
    """
    references_file = Path(folder) / f"refs({split_by}).p"
    references = _read_references(references_file, split)
    wanted = {reference["image_id"] for reference in references}
    images = _read_images(Path(folder) / "instances.json", wanted, thing_ids)
    records = []
    for reference in references:
        if reference["image_id"] not in images:
            raise ValueError(
                f"{references_file}: reference {reference['ref_id']} belongs to image "
                f"{reference['image_id']}, which the instances.json beside it lacks; the two "
                "files do not belong together."
            )
        image = images[reference["image_id"]]
        common = {
            "file_name": str(Path(image_root) / image.record["file_name"]),
            "image_id": reference["image_id"],
            "height": image.record["height"],
            "width": image.record["width"],
            "annotations": image.annotations,
            "target_indices": [_find_target(reference, image.annotation_ids, references_file)],
            "ref_id": reference["ref_id"],
        }
        records += [
            common | {"sentence": sentence["sent"], "sent_id": sentence["sent_id"]}
            for sentence in reference["sentences"]
        ]
    return records


@dataclass
class _AnnotatedImage:
    """An image of instances.json: its record, and its objects with their ids, in file order."""

    record: dict[str, Any]
    annotation_ids: list[int] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)


def _read_images(
    path: Path, wanted: set[int], thing_ids: Mapping[int, int] | None
) -> dict[int, _AnnotatedImage]:
    with open(path, encoding="utf-8") as file:
        instances = json.load(file)
    if thing_ids is None:
        category_ids = sorted(category["id"] for category in instances["categories"])
        thing_ids = {category_id: index for index, category_id in enumerate(category_ids)}
    images = {
        image["id"]: _AnnotatedImage(image)
        for image in instances["images"]
        if image["id"] in wanted
    }
    for annotation in instances["annotations"]:
        image = images.get(annotation["image_id"])
        if image is not None:
            image.annotation_ids.append(annotation["id"])
            image.annotations.append(_convert(annotation, thing_ids))
    return images


def _read_references(path: Path, split: str) -> list[dict[str, Any]]:
    """The references of one split, ordered by image and reference."""
    references = _check_references(load_plain_pickle(path), path)
    chosen = [reference for reference in references if in_split(reference["split"], split)]
    if not chosen:
        labels = sorted({reference["split"] for reference in references})
        raise ValueError(
            f"{path} has no reference of split {split!r}; its splits are "
            f"{', '.join(labels) or 'none at all'}."
        )
    return sorted(chosen, key=lambda reference: (reference["image_id"], reference["ref_id"]))


def _check_references(references: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(references, list) or not all(isinstance(r, dict) for r in references):
        raise ValueError(f"{path} holds {type(references).__name__}; a list of dicts is needed.")
    for reference in references:
        missing = [key for key in REFERENCE_KEYS if key not in reference]
        if missing:
            raise ValueError(f"{path}: a reference lacks {', '.join(missing)}; get the file again.")
    return references


def _find_target(reference: dict[str, Any], annotation_ids: list[int], path: Path) -> int:
    if reference["ann_id"] not in annotation_ids:
        raise ValueError(
            f"{path}: reference {reference['ref_id']} points at annotation {reference['ann_id']}, "
            f"which its image {reference['image_id']} does not have; the files do not belong "
            "together."
        )
    return annotation_ids.index(reference["ann_id"])


def _convert(annotation: dict[str, Any], thing_ids: Mapping[int, int]) -> dict[str, Any]:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], dict):
        # RefCLEF: one object in several run-length codes, which may overlap.
        segmentation = mask_util.merge(segmentation)
    return {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": thing_ids[annotation["category_id"]],
        "segmentation": segmentation,
        "iscrowd": annotation.get("iscrowd", 0),
    }
