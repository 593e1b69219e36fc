"""Loader of the REFER layout: RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and the clip-art benchmark.

A folder holds `instances.json` (COCO instances) and one `refs(<split_by>).p` per way of splitting,
or gRefCOCO's `grefs(<split_by>).json`, whose references are about any number of objects. What is
broken in them is left out, counted, and reported once per file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rose_d2.data.datasets.broken import BrokenAnnotations
from rose_d2.data.datasets.plain_pickle import load_plain_pickle
from rose_d2.data.datasets.refer_instances import (
    AnnotatedImage,
    read_annotated_images,
    read_json,
    target_ids,
)

REFERENCE_KEYS = ("ref_id", "ann_id", "image_id", "split", "sentences")
SENTENCE_KEYS = ("sent", "sent_id")


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
    *,
    name_image: Callable[[str], str] = str,
) -> list[dict[str, Any]]:
    """Reads one split of a dataset in the REFER layout; no image and no mask is opened.

    Broken annotations are left out and reported; within `strict_annotations` the first one is
    an error.

    Args:
        folder: holds instances.json and the references, see `references_file`.
        split_by: who made the splits, e.g. "unc", "google" or "umd".
        split: see `in_split`.
        image_root: folder of the images.
        thing_ids: category id -> contiguous id; by default the sorted ids of instances.json are
            counted from 0. An empty mapping means that no object has a class: all get -1.
        name_image: from an image's `file_name` in instances.json to its path under `image_root`.

    Returns:
        One dict per (reference, sentence), ordered by image, reference and sentence: `file_name`,
        `image_id`, `height`, `width`, `annotations` (every annotated object of the image),
        `target_indices` (list of positions in `annotations`; in gRefCOCO none or several),
        `sentence`, `ref_id`, `sent_id`. Dicts of one image share one annotations list.

    Raises:
        ValueError: if a file is hostile, damaged or of another format, or if the split has no
            reference, or none that can be used.
    """
    splits = load_refer_splits(
        folder, split_by, (split,), image_root, thing_ids, name_image=name_image
    )
    return splits[split]


def load_refer_splits(
    folder: str | Path,
    split_by: str,
    splits: Sequence[str],
    image_root: str | Path,
    thing_ids: Mapping[int, int] | None = None,
    *,
    name_image: Callable[[str], str] = str,
) -> dict[str, list[dict[str, Any]]]:
    """Reads several splits at once, each file one time; otherwise as `load_refer`.

    Returns:
        The dataset dicts by split.

    Raises:
        ValueError: as `load_refer`.
    """
    path = references_file(Path(folder), split_by)
    references = read_references(path)
    chosen = {split: _choose(references, split, path) for split in splits}
    images = read_annotated_images(
        Path(folder) / "instances.json", [r for part in chosen.values() for r in part], thing_ids
    )
    broken = BrokenAnnotations(path)
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    for split, part in chosen.items():
        for reference in part:
            image = images.get(reference["image_id"])
            for record in _convert_reference(reference, image, broken):
                file_name = Path(image_root) / name_image(image.record["file_name"])
                records[split].append({"file_name": str(file_name)} | record)
    broken.report()
    for split, part in records.items():
        if not part:
            raise ValueError(
                f"{path}: no reference of split {split!r} can be used with the "
                "instances.json beside it; the two files do not belong together."
            )
    return records


def references_file(folder: Path, split_by: str) -> Path:
    """The file with the references of a dataset, there or not.

    Args:
        folder: of the dataset, with its official name.
        split_by: who made the splits.
    """
    is_generalised = folder.name == "grefcoco"
    return folder / (f"grefs({split_by}).json" if is_generalised else f"refs({split_by}).p")


def read_references(path: Path) -> list[dict[str, Any]]:
    """Reads a refs(<split_by>).p or grefs(<split_by>).json, all splits.

    Raises:
        ValueError: if the file is hostile, damaged or holds anything else.
    """
    references = read_json(path) if path.suffix == ".json" else load_plain_pickle(path)
    if not isinstance(references, list) or not all(isinstance(r, dict) for r in references):
        raise ValueError(f"{path} holds {type(references).__name__}; a list of dicts is needed.")
    for reference in references:
        missing = [key for key in REFERENCE_KEYS if key not in reference]
        if missing:
            raise ValueError(f"{path}: a reference lacks {', '.join(missing)}; get the file again.")
        for sentence in reference["sentences"]:
            missing = [key for key in SENTENCE_KEYS if key not in sentence]
            if missing:
                raise ValueError(
                    f"{path}: a sentence of reference {reference['ref_id']} lacks "
                    f"{', '.join(missing)}; get the file again."
                )
    return references


def _choose(references: list[dict[str, Any]], split: str, path: Path) -> list[dict[str, Any]]:
    """The references of one split, ordered by image and reference."""
    chosen = [reference for reference in references if in_split(reference["split"], split)]
    if not chosen:
        labels = sorted({reference["split"] for reference in references})
        raise ValueError(
            f"{path} has no reference of split {split!r}; its splits are "
            f"{', '.join(labels) or 'none at all'}."
        )
    return sorted(chosen, key=lambda reference: (reference["image_id"], reference["ref_id"]))


def _convert_reference(
    reference: dict[str, Any], image: AnnotatedImage | None, broken: BrokenAnnotations
) -> Iterator[dict[str, Any]]:
    """One dict per usable sentence, without the file name."""
    where = f"reference {reference['ref_id']} of image {reference['image_id']}"
    if image is None:
        broken.add("references to an image that instances.json lacks", where)
        return
    positions = _find_targets(reference, image, broken, where)
    if positions is None:
        return
    for sentence in reference["sentences"]:
        text = str(sentence["sent"] or "").strip()
        if not text:
            broken.add("empty sentences", f"sentence {sentence['sent_id']} of {where}")
            continue
        yield {
            "image_id": reference["image_id"],
            "height": image.record["height"],
            "width": image.record["width"],
            "annotations": image.annotations,
            "target_indices": list(positions),
            "sentence": text,
            "ref_id": reference["ref_id"],
            "sent_id": sentence["sent_id"],
        }


def _find_targets(
    reference: dict[str, Any], image: AnnotatedImage, broken: BrokenAnnotations, where: str
) -> list[int] | None:
    """Positions of the objects a reference is about; None if one of them is not to be had."""
    positions = []
    for ann_id in target_ids(reference):
        position = image.positions.get(ann_id)
        if position is None:
            is_unusable = ann_id in image.unusable_ids
            fault = "that cannot be used" if is_unusable else "that their image does not have"
            broken.add(f"references to an annotation {fault}", f"{where}, annotation {ann_id}")
            return None
        # As in ReLA (henghuiding/ReLA: gres_model/data/datasets/grefcoco.py).
        if not image.annotations[position]["iscrowd"]:
            positions.append(position)
    if not positions and target_ids(reference):
        # Not the same as a reference to nothing.
        broken.add("references to crowds only", where)
        return None
    return positions
