"""Makes the built-in clip-art benchmark. No download and no GPU are needed.

    python datasets/prepare_clipart.py                      # datasets/clipart, 20 800 scenes
    python datasets/prepare_clipart.py --root /data --num-train 2000
    python datasets/prepare_clipart.py --images-only my_pictures --num 20
    python datasets/prepare_clipart.py --new-things output/new_things --num 20

The same seed and sizes give the same files, byte by byte, however many workers there are. A
folder that is complete for the settings asked for is left alone.
"""

import argparse
import sys
from pathlib import Path

from rose_d2.data.datasets.clipart import NUM_SCENES
from rose_d2.prepare.preparation import preparation_parser, run_preparation
from rose_d2.synthetic.clipart import (
    BenchmarkSettings,
    write_benchmark,
    write_new_things,
    write_sample_images,
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = preparation_parser(__doc__, reads_annotations=False)
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: 0)")
    parser.add_argument(
        "--num-train",
        type=int,
        default=NUM_SCENES["train"],
        help="training scenes (default: %(default)s)",
    )
    parser.add_argument(
        "--num-val",
        type=int,
        default=NUM_SCENES["val"],
        help="validation scenes (default: %(default)s)",
    )
    parser.add_argument(
        "--num-val-unseen",
        type=int,
        default=NUM_SCENES["val_unseen"],
        help="scenes with a color-object combination training never shows (default: %(default)s)",
    )
    parser.add_argument(
        "--num-kinds",
        type=int,
        default=0,
        help="draw from the first so many plain things only, for small experiments (default: all)",
    )
    parser.add_argument(
        "--images-only",
        nargs="?",
        type=Path,
        const=Path("output/demo/images"),
        metavar="DIR",
        help="write only a few pictures to try the demo on (default DIR: output/demo/images)",
    )
    parser.add_argument(
        "--new-things",
        type=Path,
        metavar="DIR",
        help="write only a few scenes of things that the benchmark has not, with COCO annotations, "
        "to try fine-tuning on",
    )
    parser.add_argument("--num", type=int, default=8, help="pictures of these two (default: 8)")
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Writes the benchmark, or a few pictures."""
    if args.images_only is not None:
        paths = write_sample_images(args.images_only.expanduser(), args.num, args.seed)
        print(f"{len(paths)} pictures are in {args.images_only}")
        return
    if args.new_things is not None:
        file = write_new_things(args.new_things.expanduser(), args.num, args.seed)
        print(f"{args.num} pictures and {file.name} are in {args.new_things}")
        return
    sizes = {"train": args.num_train, "val": args.num_val, "val_unseen": args.num_val_unseen}
    write_benchmark(
        BenchmarkSettings(args.seed, sizes, args.num_kinds),
        args.root / "clipart",
        num_workers=args.num_workers,
        overwrite=args.overwrite,
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_preparation(prepare, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())
