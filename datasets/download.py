"""Fetches the datasets that may be fetched, and says what to do for the others.

    python datasets/download.py --list                    # sizes, licences, what is there already
    python datasets/download.py ade20k refcoco            # shows what it will fetch, then asks
    python datasets/download.py all --root /data --yes    # asks nothing
    python datasets/download.py coco_val2017              # one archive, by its name in --list

Every archive goes to <root>/downloads, is checked, unpacked to where rose_d2 looks for it, and
deleted. After an interruption the same command goes on where it stopped. An archive that you got
elsewhere may be put into <root>/downloads: it is checked and unpacked like a fetched one. What is
there is never fetched again; delete its folder to have it made anew.

Exit status: 0 if everything asked for is there, 1 if something failed or needs your hand, 130
after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rose_d2.command_line import make_parser
from rose_d2.prepare.download import fetch, format_size, sole_owner
from rose_d2.prepare.preparation import add_root_argument, run_preparation
from rose_d2.prepare.sources import ARCHIVES, Archive, families, select_archives
from rose_d2.prepare.unpacking import unpack

FETCHED, PRESENT, REPLACED = "fetched", "present", "not needed"
MISSING, BY_HAND, FAILED = "missing", "by hand", "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of one archive."""

    archive: Archive
    state: str
    reason: str = ""


def download_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__)
    add_root_argument(parser)
    parser.add_argument(
        "datasets",
        nargs="*",
        metavar="DATASET",
        help=f"{', '.join(families())}, all, or archives by their names in --list",
    )
    parser.add_argument("--list", action="store_true", help="show the archives and fetch nothing")
    parser.add_argument(
        "--keep-archives",
        action="store_true",
        help="leave archives in <root>/downloads after unpacking (default: delete them)",
    )
    parser.add_argument("--yes", action="store_true", help="accept sizes and licences unasked")
    parser.set_defaults(strict=False)
    return parser


def main(args: argparse.Namespace) -> int:
    """Lists or fetches; returns the exit status."""
    if args.list:
        print_list(select_archives(args.datasets or ["all"]), args.root)
        return 0
    if not args.datasets:
        raise ValueError(f"Name a dataset ({', '.join(families())} or all), or ask for --list.")
    plan = make_plan(select_archives(args.datasets), args.root, args.datasets)
    missing = [step.archive for step in plan if step.state == MISSING]
    print_plan(missing, args.root)
    if missing and not args.yes and not is_confirmed():
        print("Nothing was fetched.")
        return 1
    outcomes = [carry_out(step, args.root, args.keep_archives) for step in plan]
    with contextlib.suppress(OSError):
        (args.root / "downloads").rmdir()  # if empty
    print_summary(outcomes)
    return int(any(outcome.state in (BY_HAND, FAILED) for outcome in outcomes))


def make_plan(archives: list[Archive], root: Path, names: list[str]) -> list[Outcome]:
    """The state of every archive before anything is fetched."""
    coming = {path for archive in archives for path in archive.provides}
    plan = []
    for archive in archives:
        state, reason = MISSING, ""
        if archive.is_present(root):
            state = PRESENT
        elif archive.key not in names and archive.is_replaced(root, coming):
            state, reason = REPLACED, f"{' or '.join(archive.substitutes)} serves as well"
        elif not archive.remote.urls and not _download_path(archive, root).exists():
            state, reason = BY_HAND, by_hand(archive, root)
        plan.append(Outcome(archive, state, reason))
    return plan


def carry_out(step: Outcome, root: Path, keep_archive: bool) -> Outcome:
    """Fetches, unpacks and cleans up; a failure is an outcome, not an exception.

    Args:
        step: of the plan.
        root: folder that holds all datasets.
        keep_archive: leave the archive where it was fetched.
    """
    archive = step.archive
    if step.state == REPLACED and not archive.is_replaced(root):
        reason = "what was to serve instead did not arrive; give the command again"
        return Outcome(archive, FAILED, reason)
    if step.state != MISSING:
        return step
    path = _download_path(archive, root)
    try:
        with sole_owner(path):
            fetch(archive.remote, path)
            unpack(
                path,
                root / archive.folder,
                inner=archive.inner,
                max_growth=archive.max_growth,
                expected=[
                    str(PurePosixPath(entry).relative_to(archive.folder))
                    for entry in archive.provides
                ],
            )
            if not keep_archive:
                path.unlink()
    except (OSError, ValueError) as error:
        return Outcome(archive, FAILED, f"{error} {by_hand(archive, root)}".strip())
    return Outcome(archive, FETCHED)


def by_hand(archive: Archive, root: Path) -> str:
    """The manual step of an archive, with the paths of this root; "" if there is none."""
    return archive.by_hand.format(root=root, downloads=root / "downloads", file=archive.file_name)


def print_list(archives: list[Archive], root: Path) -> None:
    """Prints one line per archive."""
    width = max(len(archive.key) for archive in archives)
    print(f"{'archive':{width}}  {'size':>8}  {'check':6}  {'state':10}  licence")
    for step in make_plan(archives, root, [archive.key for archive in archives]):
        archive = step.archive
        replaced = step.state == MISSING and archive.is_replaced(root)
        check = (archive.remote.checksum or "length").split(":")[0] if archive.remote.urls else "-"
        state = REPLACED if replaced else step.state
        print(
            f"{archive.key:{width}}  {_size(archive):>8}  {check:6}  {state:10}  {archive.licence}"
        )
    for family in families():
        keys = [archive.key for archive in ARCHIVES if family in archive.families]
        if set(keys) & {archive.key for archive in archives}:
            print(f"{family} = {', '.join(keys)}")


def print_plan(missing: list[Archive], root: Path) -> None:
    """Prints what will be fetched, under which licences, and the space it takes."""
    if not missing:
        return
    print(f"To fetch into {root.absolute()}:")
    width = max(len(archive.key) for archive in missing)
    for archive in missing:
        print(f"  {archive.key:{width}}  {_size(archive):>8}  {archive.licence}")
    sizes = [archive.size or 0 for archive in missing]
    unknown = sum(archive.size is None for archive in missing)
    more = f" (and {unknown} of unknown size)" if unknown else ""
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    print(f"{format_size(sum(sizes))} to download{more}; {format_size(free)} of disk are free.")
    # The unpacked data, of about the archives' sizes, and the archive at work.
    if free < sum(sizes) + max(sizes):
        print("That is probably too little: fetch fewer at a time, or name another --root.")
    print("Going on means that you accept these licences.")


def is_confirmed() -> bool:
    """Asks; without a terminal the answer is no."""
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print("\nThere is nobody to ask; --yes goes on without asking.")
        return False


def print_summary(outcomes: list[Outcome]) -> None:
    """Prints what became of every archive; what needs attention comes last."""
    print("\nSummary")
    order = (FETCHED, PRESENT, REPLACED, BY_HAND, FAILED)
    width = max(len(outcome.archive.key) for outcome in outcomes)
    for outcome in sorted(outcomes, key=lambda outcome: order.index(outcome.state)):
        line = f"  {outcome.state:10}  {outcome.archive.key:{width}}  {outcome.reason}"
        print(line.rstrip())


def _download_path(archive: Archive, root: Path) -> Path:
    return root / "downloads" / archive.file_name


def _size(archive: Archive) -> str:
    return format_size(archive.size) if archive.size else "unknown"


if __name__ == "__main__":
    sys.exit(run_preparation(main, download_parser()))
