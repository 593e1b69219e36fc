"""Say which datasets are there, what is missing, and how to get it.

    python tools/check_data.py                                   # everything rose_d2 knows
    python tools/check_data.py --dataset ade20k_sem_seg_train    # stop a script when incomplete
    python tools/check_data.py --root /data --samples 20

Of every dataset whose files are all there, the annotations are loaded, the number of images and
items is compared with the published one, and some items are opened and turned into targets.

Exit status: 0 when every dataset named with --dataset is complete and sound, or, with none named,
when at least one is and no complete one is damaged; 1 when not, 2 when the command itself is wrong.
"""

import argparse
import logging
import os
import sys
import textwrap
from pathlib import Path

from detectron2.config import get_cfg
from tqdm import tqdm

from rose_d2.config import add_rose_config
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.broken import strict_annotations
from rose_d2.data.datasets.builtin import DEFAULT_ROOT, register_all
from rose_d2.data.datasets.registration import DatasetEntry, registered_entries
from rose_d2.data.integrity import DAMAGED, MISSING, PARTIAL, PRESENT, DatasetReport, check_dataset

_WIDTH = 100


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", DEFAULT_ROOT),
        help="folder that holds all datasets (default: $DETECTRON2_DATASETS, else ./datasets)",
    )
    parser.add_argument(
        "--dataset", action="append", metavar="NAME", help="check only this one; can be repeated"
    )
    parser.add_argument(
        "--samples", type=int, default=3, help="items to open per dataset (default: %(default)s)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="one broken annotation makes a dataset damaged"
    )
    args = parser.parse_args(arguments)
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
    entries = [e for name, e in registered_entries().items() if name in (args.dataset or {name})]
    reports = []
    with strict_annotations(args.strict), tqdm(entries, unit="dataset", leave=False) as progress:
        for entry in progress:
            progress.set_description(entry.name)
            reports.append(check_dataset(entry, mapper, args.samples))
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    root = Path(args.root).expanduser()
    print(f"Datasets under {root} (choose another folder with --root or DETECTRON2_DATASETS)\n")
    reports = check_all(args)
    print_table(reports, root)
    print_advice(reports)
    counts = {s: sum(r.status == s for r in reports) for s in (PRESENT, PARTIAL, MISSING, DAMAGED)}
    print("\n" + ", ".join(f"{count} {status}" for status, count in counts.items()))
    return exit_status(reports, named=bool(args.dataset))


if __name__ == "__main__":
    sys.exit(main())
