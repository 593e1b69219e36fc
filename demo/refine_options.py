"""The options of `demo.py --refine`; imports nothing slow."""

import argparse
import os
from pathlib import Path

POLICIES = ("all", "lowest-score", "uncertain-boundary")
REFINE_COUNT = 3


def add_refine_options(parser: argparse.ArgumentParser) -> None:
    """Add what to do with masks that exist already."""
    refinement = parser.add_argument_group("refinement of masks that exist already")
    refinement.add_argument(
        "--refine",
        metavar="MASKS",
        help="a COCO JSON with masks of the images (predictions.json of an earlier run, or any "
        "other system's results with image file names), or a folder of label PNGs with the names "
        "of the images; writes before_after/, the new predictions.json and changes.csv",
    )
    refinement.add_argument(
        "--instruction",
        metavar="TEXT",
        help="what is wrong with the segments, in your words; without it: the mask is incomplete. "
        "Words about the name ('the name is wrong', 'this is not a dog') also ask for another name",
    )
    refinement.add_argument(
        "--refine-policy",
        choices=POLICIES,
        help="which segments of an image: all (default with --instruction); lowest-score first "
        "(default without); uncertain-boundary: the roughest outlines first",
    )
    refinement.add_argument(
        "--refine-count",
        type=int,
        metavar="N",
        help=f"segments an image that a policy chooses; default: {REFINE_COUNT}",
    )


def check_refine_options(args: argparse.Namespace) -> None:
    """Check `--refine` and what goes with it.

    Raises:
        ValueError: a value is out of range, or two options contradict each other.
    """
    given = {
        "--instruction": args.instruction,
        "--refine-policy": args.refine_policy,
        "--refine-count": args.refine_count,
    }
    stray = [name for name, value in given.items() if value is not None]
    if args.refine is None:
        if stray:
            raise ValueError(f"{stray[0]} needs --refine MASKS: the masks that are to be refined.")
        return
    questions = {"--task": args.task, "--refer": args.refer, "--vocabulary": args.vocabulary}
    for name, value in questions.items():
        if value is not None:
            raise ValueError(f"--refine works on masks that exist, so it takes no {name}.")
    if args.instruction is not None and not args.instruction.strip():
        raise ValueError('--instruction is empty: say what is wrong, as in "the tail is missing".')
    if args.refine_count is not None and args.refine_count < 1:
        raise ValueError(f"--refine-count {args.refine_count} must be at least 1.")
    policy = args.refine_policy or ("lowest-score" if args.instruction is None else "all")
    if args.refine_count is not None and policy == "all":
        raise ValueError("--refine-count needs a --refine-policy that chooses, all takes them all.")
    if not os.path.exists(args.refine):
        raise ValueError(f"--refine {args.refine!r} does not exist.")
    same = Path(args.output, "predictions.json").resolve() == Path(args.refine).resolve()
    if same:
        raise ValueError("--output is the folder of the masks to refine: give another one.")
