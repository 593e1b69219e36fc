"""Loader of the REFER layout: RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and the clip-art benchmark.

A folder holds `instances.json` (COCO instances) and one `refs(<split_by>).p` per way of splitting,
or gRefCOCO's `grefs(<split_by>).json`, whose references are about any number of objects. What is
broken in them is left out, counted, and reported once per file.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from rose_d2.data.coco_files import (
    CocoImage,
    convert_annotation,
    describe,
    plain_id,
    read_coco,
    read_json,
)
from rose_d2.data.datasets.registration import BrokenAnnotations

REFERENCE_KEYS = ("ref_id", "ann_id", "image_id", "split", "sentences")
SENTENCE_KEYS = ("sent", "sent_id")
# What the unpickler raises on content that is damaged or crafted.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)
REFERRING_PROTOCOLS = ("per_sentence", "per_ref")
# Takes the place of the sentence id where a sample has all sentences of its reference.
ALL_SENTENCES = -1
# The first that fits. "the dog left of the cat" is a relation, "the left dog" a position.
_RULES = (
    (
        "relation",
        r"\b(above|below|under|underneath|beneath|behind|beside|between|near|nearest|closest|closer"
        r"|higher up than|next to|in front|(left|right|top|front|side) of)\b",
    ),
    (
        "size",
        r"\b(large|larger|largest|big|bigger|biggest|huge|small|smaller|smallest|little|tiny"
        r"|tiniest|tall|taller|tallest|short|shorter|shortest)\b",
    ),
    (
        "position",
        r"\b(left|leftmost|right|rightmost|top|topmost|bottom|bottommost|upper|lower|highest"
        r"|lowest|middle|center|centre|corner|far|furthest|farthest|front|back)\b",
    ),
)
EXPRESSION_KINDS = (*(kind for kind, _ in _RULES), "name")


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
            image = images.get(plain_id(reference["image_id"]))
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
    if folder.name != "grefcoco":
        return folder / f"refs({split_by}).p"
    # Published as JSON, and by some as a pickle.
    pickled = folder / f"grefs({split_by}).p"
    listed = pickled.with_suffix(".json")
    return pickled if pickled.is_file() and not listed.is_file() else listed


def read_references(path: Path) -> list[dict[str, Any]]:
    """Reads a refs(<split_by>).p, or gRefCOCO's grefs(<split_by>).json or .p, all splits.

    In gRefCOCO's, `ann_id` is always a list: some copies write a single id, -1 too, without one.

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
        if path.name.startswith("grefs(") and not isinstance(reference["ann_id"], list):
            reference["ann_id"] = [reference["ann_id"]]
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
        ann_id = plain_id(ann_id)
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


@dataclass
class AnnotatedImage:
    """An image of instances.json with its objects.

    Attributes:
        record: as in the file, with id, file_name, height and width.
        annotations: the usable objects in file order, as in detectron2's dataset dicts.
        positions: annotation id -> index into `annotations`.
        unusable_ids: annotations that were left out.
    """

    record: dict[str, Any]
    annotations: list[dict[str, Any]] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)
    unusable_ids: set[int] = field(default_factory=set)


def read_annotated_images(
    path: Path, references: list[dict[str, Any]], thing_ids: Mapping[int, int] | None
) -> dict[int, AnnotatedImage]:
    """Reads the images that references need; what is broken is left out, counted and reported.

    Args:
        path: the instances.json.
        references: records of a refs(<split_by>).p or grefs(<split_by>).json.
        thing_ids: category id -> contiguous id; None counts the file's sorted ids from 0; empty
            gives every object class -1.

    Returns:
        The images by id; those that the file lacks are absent.

    Raises:
        ValueError: if the file is damaged or of another format.
    """
    coco = read_coco(path)
    if thing_ids is None:
        category_ids = sorted(coco.category_names, key=lambda i: (isinstance(i, str), i))
        thing_ids = {category_id: index for index, category_id in enumerate(category_ids)}
    # gRefCOCO leaves crowds out of its targets, so there they stay crowds.
    described_ids = {r["ann_id"] for r in references if not isinstance(r["ann_id"], list)}
    broken = BrokenAnnotations(path)
    images = {}
    for image_id in dict.fromkeys(plain_id(reference["image_id"]) for reference in references):
        image = coco.images.get(image_id)
        if image is None:
            continue
        if image.height is None or image.width is None:
            broken.add("images without a size", image.file_name)
            continue
        images[image_id] = _annotated_image(image, thing_ids, described_ids, broken)
    broken.report()
    return images


def _annotated_image(
    image: CocoImage,
    thing_ids: Mapping[int, int],
    described_ids: set[int],
    broken: BrokenAnnotations,
) -> AnnotatedImage:
    """One image with the objects that can be used."""
    record = {"id": image.image_id, "file_name": image.file_name}
    annotated = AnnotatedImage(record | {"height": image.height, "width": image.width})
    own_ids = [plain_id(annotation.get("id")) for annotation in image.annotations]
    counts = Counter(own_ids)
    for own_id, annotation in zip(own_ids, image.annotations, strict=True):
        converted = _convert_annotation(annotation, annotated.record, thing_ids, broken)
        # Of two annotations with one id nobody can tell which one a reference means.
        if converted is None or counts[own_id] > 1:
            annotated.unusable_ids.add(own_id)
        else:
            annotated.positions[own_id] = len(annotated.annotations)
        if converted is None:
            continue
        # A crowd that somebody describes is an answer, not a region to ignore.
        if own_id in described_ids:
            converted["iscrowd"] = 0
        annotated.annotations.append(converted)
    return annotated


def target_ids(reference: dict[str, Any]) -> list[int]:
    """Annotations that a reference is about.

    Args:
        reference: its `ann_id` is one id, or, in gRefCOCO, a list of them, [-1] for nothing.
    """
    ann_id = reference["ann_id"]
    return [i for i in ann_id if i != -1] if isinstance(ann_id, list) else [ann_id]


def _convert_annotation(
    annotation: Mapping[str, Any],
    image: dict[str, Any],
    thing_ids: Mapping[int, int],
    broken: BrokenAnnotations,
) -> dict[str, Any] | None:
    category_id = plain_id(annotation.get("category_id"))
    if thing_ids and category_id not in thing_ids:
        where = f"{describe(annotation)}, category {category_id!r}"
        broken.add("annotations of an unknown category", where)
        return None
    converted = convert_annotation(annotation, image["height"], image["width"], broken)
    if converted is None:
        return None
    known = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": thing_ids.get(category_id, -1)}
    return converted | known


class _PlainUnpickler(pickle.Unpickler):
    """Accepts only what needs no import: lists, dicts, tuples, text, bytes and numbers."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def load_plain_pickle(path: str | Path) -> Any:
    """Reads a pickle of built-in containers without ever running code from it.

    The byte strings of Python 2 become text: UTF-8 where that is what they are, else Latin-1.

    Args:
        path: the file.

    Returns:
        The content.

    Raises:
        ValueError: if the file is no pickle, is truncated, or asks for any class or function.
    """
    content = Path(path).read_bytes()
    try:
        return _load(content, "utf-8")
    except UnicodeDecodeError:
        pass
    except _UNPICKLING_ERRORS as error:
        raise _unreadable(path, error) from error
    try:
        return _load(content, "latin1")
    except _UNPICKLING_ERRORS as error:
        raise _unreadable(path, error) from error


def _load(content: bytes, encoding: str) -> Any:
    return _PlainUnpickler(io.BytesIO(content), encoding=encoding).load()


def _unreadable(path: str | Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path} is not a plain pickle of lists, dicts, text and numbers ({error}); nothing in it "
        "was executed. Referring annotations never need more: get the file again from its source."
    )


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


def expression_kind(sentence: str) -> str:
    """Tell what singles the object out.

    Args:
        sentence: English, for example "the leftmost dog".

    Returns:
        "relation" (to another object), "size" (compared with others of its kind), "position" (in
        the image), or "name": none of these, so its name or its looks.
    """
    words = sentence.casefold()
    return next((kind for kind, rule in _RULES if re.search(rule, words)), "name")
