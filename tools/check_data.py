"""Say which datasets are there, what is missing, and how to get it.

    python tools/check_data.py                                   # everything rose_d2 knows
    python tools/check_data.py --dataset ade20k_sem_seg_train    # stop a script when incomplete
    python tools/check_data.py --root /data --samples 20
    python tools/check_data.py --custom-coco images/ ann.json --left-out left_out.csv   # your own

Of every dataset whose files are all there, the annotations are loaded, the number of images and
items is compared with the published one, and some items are opened and turned into targets.

Exit status: 0 when every dataset named with --dataset is complete and sound, or, with none named,
when at least one is and no complete one is damaged; 1 when not, 2 when the command itself is wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from rose_d2.command_line import make_parser, run_main
from rose_d2.config.defaults import add_rose_config
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.builtin import DEFAULT_ROOT, register_all
from rose_d2.data.datasets.custom import (
    CUSTOM_NAME,
    use_custom_data,
)
from rose_d2.data.datasets.registration import (
    DatasetEntry,
    recorded_left_out,
    registered_entries,
    strict_annotations,
)
from rose_d2.files import write_table

PRESENT, PARTIAL, MISSING, DAMAGED = "present", "partial", "missing", "damaged"
_WIDTH = 100
_SAMPLES, _OWN_SAMPLES = 3, 200


@dataclass
class DatasetReport:
    """The state of one dataset.

    Attributes:
        entry: the dataset.
        status: "present", "partial" (some of its files), "missing" (none of them), or "damaged"
            (all files, but they cannot be read or an item cannot be used).
        missing: files and folders that are not there, in the order in which to get them.
        num_images: distinct images, None where the dataset was not loaded.
        num_items: items, likewise.
        problems: one sentence per thing that is wrong.
        num_opened: items that were opened and turned into targets.
    """

    entry: DatasetEntry
    status: str
    missing: list[Path] = field(default_factory=list)
    num_images: int | None = None
    num_items: int | None = None
    problems: list[str] = field(default_factory=list)
    num_opened: int = 0


def check_dataset(
    entry: DatasetEntry, mapper: RoseDatasetMapper, num_samples: int
) -> DatasetReport:
    """Look for a dataset's files, load its annotations and try some of its items.

    Args:
        entry: the dataset.
        mapper: in training mode; opens image and annotations and builds the targets.
        num_samples: items to try, spread evenly over the dataset.

    Returns:
        The report; what is wrong is in it, not raised.
    """
    missing = entry.missing_files()
    if missing:
        status = MISSING if len(missing) == len(entry.files) else PARTIAL
        return DatasetReport(entry, status, missing=missing)
    try:
        records = entry.load_dicts()
    except (ValueError, OSError, KeyError, AssertionError) as error:
        return DatasetReport(entry, DAMAGED, problems=[_sentence(error)])
    report = DatasetReport(
        entry,
        PRESENT,
        num_images=len({record["file_name"] for record in records}),
        num_items=len(records),
    )
    if not records:
        report.problems.append("its annotation files list no item")
    for index in np.unique(np.linspace(0, len(records) - 1, num_samples).astype(int)):
        if index >= 0 and records:
            _try_item(records[index], mapper, report)
    if report.problems:
        report.status = DAMAGED
    return report


def _try_item(record: dict[str, Any], mapper: RoseDatasetMapper, report: DatasetReport) -> None:
    try:
        mapped = mapper(record, np.random.default_rng(0))
        _check_classes(mapped, report.entry.name)
        report.num_opened += 1
    except (ValueError, OSError, KeyError, IndexError) as error:
        report.problems.append(f"item of {record['file_name']}: {_sentence(error)}")


def _check_classes(mapped: dict[str, Any], dataset_name: str) -> None:
    metadata = MetadataCatalog.get(dataset_name)
    names = set(metadata.get("thing_classes", ())) | set(metadata.get("stuff_classes", ()))
    unknown = {name for name in mapped["instances"].gt_category_names if name} - names
    if unknown:
        raise ValueError(f"it has names that are not in the metadata: {sorted(unknown)}")


def _sentence(error: Exception) -> str:
    detail = str(error).splitlines()[0] if str(error) else ""
    return detail if isinstance(error, ValueError | OSError) else f"{type(error).__name__} {detail}"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", DEFAULT_ROOT),
        help="folder that holds all datasets (default: $DETECTRON2_DATASETS, else ./datasets)",
    )
    parser.add_argument(
        "--dataset", action="append", metavar="NAME", help="check only this one; can be repeated"
    )
    parser.add_argument(
        "--samples",
        type=int,
        help=f"items to open per dataset (default: {_SAMPLES}; of your own data {_OWN_SAMPLES})",
    )
    own = parser.add_mutually_exclusive_group()
    own.add_argument(
        "--custom-coco",
        nargs=2,
        metavar=("IMAGES", "JSON"),
        help="check this folder of images with COCO instance annotations",
    )
    own.add_argument(
        "--custom-labels",
        nargs=3,
        metavar=("IMAGES", "LABELS", "CLASSES"),
        help="check this folder of images with label PNGs and a file of classes, as train_net.py "
        "takes them",
    )
    parser.add_argument(
        "--left-out", metavar="CSV", help="write all that is left out to this file, with the reason"
    )
    parser.add_argument(
        "--strict", action="store_true", help="one broken annotation makes a dataset damaged"
    )
    args = parser.parse_args(arguments)
    args.is_custom = bool(args.custom_coco or args.custom_labels)
    if args.is_custom and args.dataset:
        parser.error("--dataset names what rose_d2 knows; leave it out beside your own data")
    register_all(args.root)
    unknown = sorted(set(args.dataset or ()) - set(registered_entries()))
    if unknown:
        known = "\n  ".join(registered_entries())
        parser.error(f"there is no dataset {', '.join(unknown)}; known are\n  {known}")
    return args


def check_all(args: argparse.Namespace) -> list[DatasetReport]:
    """Check the datasets the command line asks for, with a progress bar."""
    cfg = get_cfg()
    add_rose_config(cfg)
    mapper = RoseDatasetMapper(cfg, is_train=True)
    if args.is_custom:
        use_custom_data(cfg, args)
        args.dataset = [CUSTOM_NAME]
    entries = [e for name, e in registered_entries().items() if name in (args.dataset or {name})]
    num_samples = args.samples or (_OWN_SAMPLES if args.is_custom else _SAMPLES)
    reports = []
    with strict_annotations(args.strict), tqdm(entries, unit="dataset", leave=False) as progress:
        for entry in progress:
            progress.set_description(entry.name)
            reports.append(check_dataset(entry, mapper, num_samples))
    return reports


def print_table(reports: list[DatasetReport], root: Path) -> None:
    """One line per dataset, and below it what is wrong."""
    width = max(len(report.entry.name) for report in reports)
    for report in reports:
        print(f"{report.status:8}  {report.entry.name:{width}}  {_summary(report, root)}")
        for problem in report.problems[:3]:
            print(f"{'':{width + 12}}{problem}")
        if len(report.problems) > 3:
            print(f"{'':{width + 12}}and {len(report.problems) - 3} more problems")


def _summary(report: DatasetReport, root: Path) -> str:
    if report.missing:
        first = report.missing[0]
        shown = first.relative_to(root) if first.is_relative_to(root) else first
        more = f" and {len(report.missing) - 1} more" if len(report.missing) > 1 else ""
        return f"needs {shown}{more}"
    if report.num_images is None or report.num_items is None:
        return ""
    parts = [_count(report.num_images, report.entry.num_images, "images")]
    if report.num_items != report.num_images:
        parts.append(_count(report.num_items, report.entry.num_items, "items"))
    return ", ".join([*parts, f"{report.num_opened} opened"])


def _count(found: int, published: int | None, unit: str) -> str:
    """Both numbers where they differ; a subset is no error."""
    of_published = f" of {published:,}" if published not in (None, found) else ""
    return f"{found:,}{of_published} {unit}"


def print_advice(reports: list[DatasetReport]) -> None:
    """How to get what is missing, once for all datasets that come the same way."""
    advice: dict[str, list[DatasetEntry]] = {}
    for report in reports:
        if report.status in (MISSING, PARTIAL):
            advice.setdefault(report.entry.how_to_get, []).append(report.entry)
    for how_to_get, entries in advice.items():
        names = f"To get {', '.join(entry.name for entry in entries)}:"
        print("\n" + _wrap(names))
        print(textwrap.indent(_wrap(how_to_get), "  "))


def _wrap(text: str) -> str:
    """Lines of one width, without breaking commands at their hyphens or paths."""
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False, break_long_words=False)


def exit_status(reports: list[DatasetReport], *, named: bool) -> int:
    """0 when everything asked for can be used, see the module's docstring."""
    states = {report.status for report in reports}
    if named:
        return 0 if states == {PRESENT} else 1
    return 0 if PRESENT in states and DAMAGED not in states else 1


def check(args: argparse.Namespace) -> int:
    """Print the table and what to get; return the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    root = Path(args.root).expanduser()
    if not args.is_custom:
        print(f"Datasets under {root} (choose another folder with --root or DETECTRON2_DATASETS)\n")
    with recorded_left_out() as left_out:
        reports = check_all(args)
    if args.left_out:
        columns = ("file", "reason", "which")
        rows = (dict(zip(columns, row, strict=True)) for row in dict.fromkeys(left_out))
        write_table(args.left_out, columns, rows)
    print_table(reports, root)
    print_advice(reports)
    counts = {s: sum(r.status == s for r in reports) for s in (PRESENT, PARTIAL, MISSING, DAMAGED)}
    print("\n" + ", ".join(f"{count} {status}" for status, count in counts.items()))
    return exit_status(reports, named=bool(args.dataset))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(check, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
