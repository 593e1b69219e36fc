"""Your own data in one call: COCO annotations, or images with label PNGs and a list of classes."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from rose_d2.data.coco_files import displayed_size, read_coco, read_text, stored_size
from rose_d2.data.datasets.coco import load_coco_instances
from rose_d2.data.datasets.registration import (
    BrokenAnnotations,
    DatasetEntry,
    distinct_colors,
    register,
)
from rose_d2.data.image_io import ImageReadError, opened_image
from rose_d2.data.mixture import train_only_on
from rose_d2.prompts.tasks import TASKS

IGNORE_LABEL, WIDE_IGNORE_LABEL = 255, 65535
# Only at the end of a line; other colons belong to the name.
_STUFF_MARK = re.compile(r"\s*:\s*stuff$", re.IGNORECASE)
# CamVid's class_dict.csv, CVAT's labelmap.txt, and tables with tabs.
_COLOURED = re.compile(r"([^,:]+?)[,: ] ?(\d{1,3})[, ] ?(\d{1,3})[, ] ?(\d{1,3})(?::[^:]*:[^:]*)?")
# A dump of id2label; and where every line begins with its number.
_NUMBERED = re.compile(r"\d+\s*[:=,;]")
_COUNTED = re.compile(r"\W?(\d{1,6})\W")
# A comment, or a file of another kind: JSON, YAML, protocol buffers, quoted tables.
_NO_NAME = re.compile(r"[#\"'\[{]|.*[{}]")
_MARKUP = re.compile(r"<[^<>]*>|\[/?INST\]")
_LONGEST_NAME = 100
# Images of which one at least has to be there.
_LOOKED_FOR = 20
_CHECK_PATHS = "Check the paths you gave for it."
CUSTOM_NAME = "custom"
TRAIN, VAL = "train", "val"
# Every so many images one is held out, at most _MOST_HELD_OUT.
HELD_OUT_EVERY, _MOST_HELD_OUT = 5, 500


def register_custom(declarations: Sequence[Sequence[str]]) -> None:
    """Register the datasets of DATASETS.CUSTOM.

    Args:
        declarations: each (name, "coco", image folder, annotation JSON) or
            (name, "labels", image folder, folder of label PNGs, file with the classes); a last
            entry "val" takes only the images that are held out, "train" the others.

    Raises:
        ValueError: a declaration has another form, or its files are not what they should be.
        FileNotFoundError: one of its files does not exist.
    """
    for declaration in declarations:
        match tuple(declaration):
            case (name, "coco", image_root, json_file, *part) if _is_part(part):
                register_custom_coco(name, image_root, json_file, *part)
            case (name, "labels", image_root, label_root, classes_file, *part) if _is_part(part):
                register_custom_labels(name, image_root, label_root, classes_file, *part)
            case _:
                raise ValueError(
                    f"DATASETS.CUSTOM has the entry {declaration!r}; write (name, 'coco', image "
                    "folder, annotation JSON) or (name, 'labels', image folder, folder of label "
                    "PNGs, file with one class name per line), either with 'train' or 'val' at "
                    "its end for a part of the images."
                )


def _is_part(rest: Sequence[str]) -> bool:
    return list(rest) in ([], [TRAIN], [VAL])


def held_out(count: int) -> set[int]:
    """Positions of the images to hold out, of `count` in a fixed order.

    Raises:
        ValueError: there are too few to train on the rest.
    """
    if count < 2:
        raise ValueError(
            f"There is {count} image to train on; with one more, one can be held out to evaluate "
            "on, or give data for it with --custom-val."
        )
    positions = range(min(HELD_OUT_EVERY, count) - 1, count, HELD_OUT_EVERY)
    return set(positions[:_MOST_HELD_OUT])


def _part_of(records: list[dict[str, Any]], part: str | None) -> list[dict[str, Any]]:
    """The images of one part, see `register_custom`.

    Raises:
        ValueError: there are too few images, or no object in this part of them.
    """
    if part is None:
        return records
    chosen = held_out(len(records))
    kept = [record for i, record in enumerate(records) if (i in chosen) == (part == VAL)]
    if not any(_has_objects(record) for record in kept):
        which = "held out for evaluation" if part == VAL else "to train on"
        raise ValueError(
            f"None of the {len(kept)} of {len(records)} images {which} (every {HELD_OUT_EVERY}th "
            "is held out) has an object; give data to evaluate on with --custom-val."
        )
    return kept


def _has_objects(record: Mapping[str, Any]) -> bool:
    annotations = record.get("annotations")
    return annotations is None or any(not annotation["iscrowd"] for annotation in annotations)


def register_custom_coco(
    name: str, image_root: str | Path, json_file: str | Path, part: str | None = None
) -> None:
    """Register images with COCO instance annotations, for training, evaluation and the demo.

    Args:
        name: to use in DATASETS.TRAIN and TEST.
        image_root: folder that the images' `file_name` is relative to.
        json_file: with `images`, `annotations` (polygons or RLE) and `categories`.
        part: `VAL` takes only the images that are held out, `TRAIN` the others; None takes all.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the file is no COCO annotation file.
    """
    image_root, json_file = Path(image_root).expanduser(), Path(json_file).expanduser()
    _require(name, image_root, json_file)
    names = _category_names(json_file)
    classes = list(names.values())
    ids = {category_id: index for index, category_id in enumerate(names)}
    metadata = {
        **TASKS["instance"].metadata,
        "json_file": str(json_file),
        "image_root": str(image_root),
        "thing_classes": classes,
        "thing_colors": distinct_colors(len(classes)),
        "thing_dataset_id_to_contiguous_id": ids,
    }
    register(
        DatasetEntry(
            name=name,
            load=lambda: _part_of(_load_coco(json_file, image_root, ids), part),
            metadata=metadata,
            files=(image_root, json_file),
            how_to_get=_CHECK_PATHS,
        )
    )


def _load_coco(
    json_file: Path, image_root: Path, thing_ids: Mapping[Any, int]
) -> list[dict[str, Any]]:
    """The records of a COCO file, whose images are there."""
    records = load_coco_instances(json_file, image_root, thing_ids)
    if not any(Path(record["file_name"]).is_file() for record in records[:_LOOKED_FOR]):
        raise ValueError(
            f"{json_file} lists images that {image_root} does not have, first "
            f"{records[0]['file_name']}; give the folder that its file_name is relative to."
        )
    return records


def register_custom_labels(
    name: str,
    image_root: str | Path,
    label_root: str | Path,
    classes_file: str | Path,
    part: str | None = None,
) -> None:
    """Register images with one label PNG each, for training, evaluation and the demo.

    Args:
        name: to use in DATASETS.TRAIN and TEST.
        image_root: folder of the images.
        label_root: folder of the label PNGs, 8-bit grey or palette, named like their images;
            the value of a pixel is the line number of its class, from 0; 255 is unlabelled. Of
            more than 255 classes the PNGs have 16 bits and 65535 is unlabelled.
        classes_file: text file with one class name per line; a line that ends in ": stuff" is
            background without a shape of its own ("sky: stuff"). With colours ("car,0,0,142") the
            PNGs may be in these colours.
        part: as for `register_custom_coco`.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the list of classes is empty, too long, or has a name twice.
    """
    image_root, label_root = Path(image_root).expanduser(), Path(label_root).expanduser()
    classes_file = Path(classes_file).expanduser()
    _require(name, image_root, label_root, classes_file)
    listed = _read_classes(classes_file)
    classes = [entry.name for entry in listed]
    # 255 is a class where there are as many, which takes 16-bit labels.
    ignore_label = IGNORE_LABEL if len(classes) <= IGNORE_LABEL else WIDE_IGNORE_LABEL
    metadata = {
        **TASKS["semantic"].metadata,
        "image_root": str(image_root),
        "sem_seg_root": str(label_root),
        "ignore_label": ignore_label,
        "stuff_classes": classes,
        "stuff_colors": distinct_colors(len(classes)),
        "stuff_dataset_id_to_contiguous_id": {i: i for i in range(len(classes))},
        # By class, as detectron2's Visualizer looks them up.
        "thing_classes": ["" if entry.is_stuff else entry.name for entry in listed],
        "thing_colors": distinct_colors(len(classes)),
        "label_colors": [entry.colour for entry in listed] if listed[0].colour else None,
    }
    register(
        DatasetEntry(
            name=name,
            load=lambda: _part_of(_load_labels(image_root, label_root, classes), part),
            metadata=metadata,
            files=(image_root, label_root, classes_file),
            how_to_get=_CHECK_PATHS,
        )
    )


def _load_labels(image_root: Path, label_root: Path, classes: list[str]) -> list[dict[str, Any]]:
    """The records, with a warning where the labels look like masks of 0 and 255."""
    records = load_labelled_images(image_root, label_root)
    found: set[int] = set()
    for record in records[:_LOOKED_FOR]:
        with contextlib.suppress(ImageReadError), opened_image(record["sem_seg_file_name"]) as png:
            found |= set(np.unique(np.asarray(png)).tolist())
    seen = BrokenAnnotations(label_root)
    if found == {IGNORE_LABEL} and len(classes) <= IGNORE_LABEL:
        seen.note("the label images hold nothing but 255, which is unlabelled")
    if found == {0, IGNORE_LABEL} and 1 < len(classes) <= IGNORE_LABEL:
        seen.note(
            "the label images hold nothing but 0 and 255, but 255 is unlabelled here, so no pixel "
            f"has class {classes[1]!r}; write the number of the class (1 for the second line) "
            "instead of 255"
        )
    seen.report()
    return records


def read_class_names(path: str | Path) -> list[str]:
    """Read the class names of a dataset.

    Args:
        path: COCO annotation JSON, or text as for `register_custom_labels`.

    Returns:
        The names in the order of the classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no names, or one twice.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r} to read class names from.")
    if path.suffix.lower() == ".json":
        return list(_category_names(path).values())
    return [entry.name for entry in _read_classes(path)]


def load_labelled_images(image_root: Path, label_root: Path) -> list[dict[str, Any]]:
    """Pair images with label PNGs of the same name; only headers are read.

    Args:
        image_root: folder of the images.
        label_root: folder of the PNGs.

    Returns:
        One dict per image that has labels, by name; images without are counted and left out.

    Raises:
        ValueError: no image has labels.
    """
    known = Image.registered_extensions()
    broken = BrokenAnnotations(label_root)
    records = []
    paths = sorted(p for p in image_root.iterdir() if p.suffix.lower() in known)
    stems = Counter(path.stem for path in paths)
    for path in paths:
        label_file = label_root / f"{path.stem}.png"
        if not label_file.exists():
            broken.add("images without a label PNG", path.name)
            continue
        try:
            shown, labelled = displayed_size(path), displayed_size(label_file)
        except OSError:
            broken.add("images that, or whose label PNG, cannot be read", path.name)
            continue
        if labelled != shown and not (labelled == shown[::-1] == stored_size(path)):
            broken.add("images whose label PNG has another size", path.name)
            continue
        # A tool that did not know of EXIF rotation drew on the stored pixels.
        height, width = labelled
        records.append(
            {
                "file_name": str(path),
                "image_id": path.stem if stems[path.stem] == 1 else path.name,
                "height": height,
                "width": width,
                "sem_seg_file_name": str(label_file),
            }
        )
    if not records:
        raise ValueError(
            f"No image of {image_root} has a label PNG of its name and size in {label_root}; for "
            "street.jpg a file street.png is needed there"
            + "".join(f"; {part}" for part in broken.parts())
            + "."
        )
    broken.report()
    return records


def _require(name: str, *paths: Path) -> None:
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"The custom dataset {name!r} needs {path}, which is missing.")


class _ListedClass(NamedTuple):
    """One class of a text file; its colour is RGB, 0 to 255, or None."""

    name: str
    is_stuff: bool
    colour: tuple[int, ...] | None


def _read_classes(path: Path) -> list[_ListedClass]:
    """The classes, one a line: "car", "sky: stuff", or with colours as CamVid and CVAT list them.

    CamVid's lines are "name,r,g,b" under a heading, CVAT's "name:r,g,b:parts:actions".
    """
    lines = [" ".join(line.split()) for line in read_text(path).rstrip().splitlines()]
    with_colours = [line for line in lines if line and not line.startswith("#")]
    if with_colours and not any(map(str.isdecimal, with_colours[0])):
        with_colours = with_colours[1:]  # the heading
    coloured = [_COLOURED.fullmatch(line) for line in with_colours]
    if coloured and all(coloured):
        names = _checked_names([m[1].strip() for m in coloured if m], path)
        rows = [tuple(int(m[k]) for k in (2, 3, 4)) for m in coloured if m]
        _check_colours(rows, path)
        return [_ListedClass(n, False, c) for n, c in zip(names, rows, strict=True)]
    if "" in lines:
        raise ValueError(
            f"Line {lines.index('') + 1} of {path} is empty, but the values of pixels are line "
            "numbers: write a name there, or remove the line where no pixel has its number."
        )
    _check_lines(lines, path)
    marks = [_STUFF_MARK.search(line) for line in lines]
    names = [line[: m.start()] if m else line for line, m in zip(lines, marks, strict=True)]
    names = _checked_names(names, path)
    return [_ListedClass(n, bool(m), None) for n, m in zip(names, marks, strict=True)]


def _check_lines(lines: list[str], path: Path) -> None:
    """Refuse what is text but no list of names, before its lines become the names."""
    foreign = next(filter(_NO_NAME.match, lines), None)
    counted = [_COUNTED.match(line) for line in lines]
    numbers = [int(match[1]) for match in counted if match]
    wrong = ""
    if len(lines) == 1 and "," in lines[0]:
        wrong = f"one line with commas, {lines[0][:40]!r}"
    elif foreign is not None:
        wrong = f"the line {foreign[:40]!r}, as a comment or another kind of file has"
    elif len(lines) > 1 and numbers in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        wrong = f"lines that are counted, first {lines[0]!r}"
    if wrong:
        raise ValueError(f"{path} has {wrong}; write the name of one class, alone, in every line.")


def _check_colours(colours: list[tuple[int, ...]], path: Path) -> None:
    """Refuse colours that cannot be, or two classes of one colour."""
    wrong = [colour for colour in colours if max(colour) > 255]
    wrong += [colour for colour, count in Counter(colours).items() if count > 1]
    if wrong:
        raise ValueError(
            f"{path} gives a class the colour {wrong[0]}, which has a value above 255 or is "
            "another class's, too; every class needs a colour of its own, from 0 to 255."
        )


def _category_names(json_file: Path) -> dict[Any, str]:
    """Class name by category id, in the order of the classes."""
    names = read_coco(json_file).category_names
    # Numbers before text.
    ids = sorted(names, key=lambda i: (isinstance(i, str), i))
    checked = _checked_names([" ".join(names[i].split()) for i in ids], json_file)
    return dict(zip(ids, checked, strict=True))


def _checked_names(names: list[str], source: Path) -> list[str]:
    """The names, if a model can learn to say them.

    Raises:
        ValueError: there is none, one twice, or one that is no name.
    """
    wrong = next(filter(None, map(_what_is_wrong, names)), "")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names:
        wrong = "0 classes"
    elif all(name.isdecimal() for name in names):
        wrong = "only numbers"
    elif twice:
        wrong = f"the name {twice[0]!r} twice"
    if wrong:
        raise ValueError(
            f"{source} has {wrong}; give at least one different, non-empty name a class, as a "
            "person would say it, since that is what the model learns to say."
        )
    return names


def _what_is_wrong(name: str) -> str:
    """Why something cannot be the name of a class; "" where it can."""
    if not name:
        return "an empty name"
    if len(name) > _LONGEST_NAME:
        return f"a name of {len(name)} characters ({name[:20]!r}...)"
    if not name.isprintable():
        return f"the name {name!r} with characters that nobody can read"
    if _MARKUP.search(name):
        return f"the name {name!r}, which looks like a token of the language model"
    return f"the name {name!r}, which begins with a number" if _NUMBERED.match(name) else ""


def use_custom_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Register DATASETS.CUSTOM, and let data of the command line replace the config's datasets.

    Args:
        cfg: not frozen; DATASETS is changed where the command line names data.
        args: may have `custom_coco` (image folder, JSON) or `custom_labels` (image folder, label
            PNGs, file with the classes).

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the data are not what they should be.
    """
    declared = None
    if getattr(args, "custom_coco", None):
        declared = (CUSTOM_NAME, "coco", *args.custom_coco)
    elif getattr(args, "custom_labels", None):
        declared = (CUSTOM_NAME, "labels", *args.custom_labels)
    if declared:
        cfg.DATASETS.CUSTOM = (*cfg.DATASETS.CUSTOM, declared)
        train_only_on(cfg, [CUSTOM_NAME])
        cfg.DATASETS.TEST = (CUSTOM_NAME,)
    register_custom(cfg.DATASETS.CUSTOM)
