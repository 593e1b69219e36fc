"""Checks RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO; nothing has to be converted.

Needed under --root (unpacked; python datasets/download.py gets them):

    refcoco/{instances.json,refs(unc).p,refs(google).p}
    refcoco+/{instances.json,refs(unc).p}
    refcocog/{instances.json,refs(umd).p,refs(google).p}
    refclef/{instances.json,refs(unc).p,refs(berkeley).p}
    grefcoco/{instances.json,grefs(unc).json}   checked only when --datasets names it
    coco/train2014/COCO_train2014_*.jpg     or images/train2014, images/mscoco/images/train2014,
                                            or coco/train2017: the same images with other names
    saiapr_tc-12/                           or images/saiapr_tc-12, for RefCLEF

    python datasets/prepare_refcoco.py
    python datasets/prepare_refcoco.py --root /data --datasets refcoco_unc refcocog_umd

Files laid out for LISA, GSVA, GLaMM, PSALM, Sa2VA or the REFER toolkit are found in their folders
and linked to these places; no file is changed, moved or copied. Then every reference is read by
the loader that training uses, every image's size is compared with its annotation, and a table
shows each split's numbers (published ones in parentheses, ~ where they are only widely quoted).

Exit status: 0 if all that was asked for is there and fits, else 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from rose_d2.data.datasets.refcoco import (
    HOW_TO_GET_GREFCOCO,
    REFER_SPLITS,
    find_image_root,
    image_roots,
    load_splits,
)
from rose_d2.data.datasets.refer_files import references_file
from rose_d2.prepare.preparation import preparation_parser, run_parallel, run_preparation

logger = logging.getLogger("prepare_refcoco")

# Where other projects keep the annotation folders, below their data folder.
OTHER_LAYOUTS = {
    "refer_seg": "LISA, GSVA",
    "Refer_Segm": "GLaMM",
    "refseg": "PSALM",
    "ref_seg": "Sa2VA",
    "refer/data": "the REFER toolkit",
    "data": "the REFER toolkit",
}
OTHER_COCO_IMAGES = (
    *(f"{layout}/images/mscoco/images/train2014" for layout in OTHER_LAYOUTS),
    *(f"{layout}/images/mscoco/train2014" for layout in OTHER_LAYOUTS),
    *(f"{layout}/images/train2014" for layout in OTHER_LAYOUTS),
    *(f"ref_seg/{name}/coco2014/train2014" for name in ("refcoco", "refcoco+", "refcocog")),
    "images/mscoco/train2014",
    "coco_2014/train2014",
    "coco2014/train2014",
    "train2014",
)
OTHER_SAIAPR_IMAGES = tuple(f"{layout}/images/saiapr_tc-12" for layout in OTHER_LAYOUTS)


class ImageCheck(NamedTuple):
    """An image file and the size that its annotation gives it."""

    path: str
    height: int
    width: int


def parse_selection(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of dataset and split-by for names such as "refcoco" or "refcocog_umd".

    Raises:
        ValueError: if a name is unknown.
    """
    known = {f"{dataset}_{split_by}": (dataset, split_by) for dataset, split_by in REFER_SPLITS}
    selected: dict[tuple[str, str], None] = {}
    for name in names:
        found = [pair for full, pair in known.items() if name in (full, pair[0])]
        if not found:
            families = dict.fromkeys(dataset for dataset, _ in REFER_SPLITS)
            raise ValueError(
                f"There is no referring dataset {name!r}; choose from {', '.join(families)} or, "
                f"with one way of splitting, {', '.join(known)}."
            )
        selected |= dict.fromkeys(found)
    return list(selected)


def link_other_layouts(root: Path, datasets: Iterable[str]) -> None:
    """Link what lies where other projects expect it to where rose_d2 looks.

    Args:
        root: the datasets folder.
        datasets: some of `REFER_SPLITS`.
    """
    for dataset in datasets:
        if not (root / dataset).exists():
            _link_first(root, dataset, [f"{layout}/{dataset}" for layout in OTHER_LAYOUTS])
        if find_image_root(root, dataset) is None:
            others = OTHER_SAIAPR_IMAGES if dataset == "refclef" else OTHER_COCO_IMAGES
            _link_first(root, image_roots(dataset)[0].folder, others)


def _link_first(root: Path, name: str, candidates: Iterable[str]) -> None:
    target = next((root / c for c in candidates if (root / c).is_dir()), None)
    link = root / name
    if target is None or link.exists() or link.is_symlink():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    up = Path(*[".."] * (len(Path(name).parts) - 1))
    try:
        link.symlink_to(up / target.relative_to(root), target_is_directory=True)
    except OSError as error:
        raise ValueError(
            f"{target} cannot be linked to {link} ({error}); move or copy it there yourself."
        ) from error
    logger.info("Linked %s -> %s", link, target)


def missing_files(root: Path, dataset: str, split_by: str) -> list[str]:
    """What one dataset lacks, as sentences."""
    files = [references_file(root / dataset, split_by), root / dataset / "instances.json"]
    missing = [f"{path} is missing" for path in files if not path.is_file()]
    if find_image_root(root, dataset) is None:
        places = ", ".join(place.folder for place in image_roots(dataset))
        missing.append(f"the images of {dataset} are in none of the folders {places} of {root}")
    if dataset == "grefcoco":
        return [f"{sentence}. {HOW_TO_GET_GREFCOCO}" for sentence in missing]
    advice = f"get it with `python datasets/download.py {dataset} --root {root}`"
    return [f"{sentence}; {advice}" for sentence in missing]


def table_row(dataset: str, split_by: str, split: str, records: list[dict[str, Any]]) -> list[str]:
    """One line of the table: name, then references, images, sentences."""
    published = REFER_SPLITS[dataset, split_by][split]
    counts = (
        len({record["ref_id"] for record in records}),
        len({record["image_id"] for record in records}),
        len(records),
    )
    expected = [None if number is None else str(number) for number in published[:3]]
    if not published.is_sourced:
        expected[-1] = f"~{expected[-1]}"
    cells = [
        str(count) if number is None else f"{count} ({number})"
        for count, number in zip(counts, expected, strict=True)
    ]
    return [f"{dataset}_{split_by}_{split}", *cells]


def format_table(rows: list[list[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right."""
    rows = [["dataset", "references", "images", "sentences"], *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in rows
    )


def check_image(image: ImageCheck) -> str | None:
    """What is wrong with an image file, or None; only its header is read."""
    try:
        with Image.open(image.path) as opened:
            width, height = opened.size
            # Cameras may store the picture lying on its side; it is read upright.
            if opened.getexif().get(ExifTags.Base.Orientation, 1) > 4:
                width, height = height, width
    except FileNotFoundError:
        return f"{image.path} does not exist"
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return f"{image.path} cannot be read ({error})"
    if (height, width) != (image.height, image.width):
        return (
            f"{image.path} has {width} x {height} pixels, its annotation says "
            f"{image.width} x {image.height}"
        )
    return None


def check_images(images: list[ImageCheck], num_workers: int) -> list[str]:
    """One sentence if any image does not fit its annotation."""
    if not images:
        return []
    found = run_parallel(check_image, images, num_workers=num_workers, description="image sizes")
    problems = [problem for problem in found if problem is not None]
    if not problems:
        return []
    return [f"{len(problems)} of {len(images)} images do not fit, first: {problems[0]}"]


def main(args: argparse.Namespace) -> int:
    """Links, checks and prints; returns the exit status."""
    selection = parse_selection(args.datasets)
    link_other_layouts(args.root, dict.fromkeys(dataset for dataset, _ in selection))
    rows: list[list[str]] = []
    problems: dict[str, None] = {}
    images: dict[ImageCheck, None] = {}
    for dataset, split_by in selection:
        missing = missing_files(args.root, dataset, split_by)
        problems |= dict.fromkeys(missing)
        if missing:
            continue
        logger.info("Reading %s, split by %s", dataset, split_by)
        for split, records in load_splits(args.root, dataset, split_by).items():
            rows.append(table_row(dataset, split_by, split, records))
            images |= dict.fromkeys(
                ImageCheck(r["file_name"], r["height"], r["width"]) for r in records
            )
    problems |= dict.fromkeys(check_images(list(images), args.num_workers))
    if rows:
        print(format_table(rows))
    for problem in problems:
        print(f"prepare_refcoco: {problem}", file=sys.stderr)
    return 1 if problems else 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = preparation_parser(__doc__)
    families = list(dict.fromkeys(dataset for dataset, _ in REFER_SPLITS))
    parser.add_argument(
        "--datasets",
        nargs="+",
        # gRefCOCO is for evaluation beyond the paper, so most users lack it.
        default=[family for family in families if family != "grefcoco"],
        metavar="NAME",
        help=(
            f"check only these: {', '.join(families)}, or e.g. refcocog_umd (default: all but "
            "grefcoco)"
        ),
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_preparation(main, build_parser()))
