"""Makes the built-in clip-art benchmark. No download and no GPU are needed.

    python datasets/prepare_clipart.py                      # datasets/clipart, 20 800 scenes
    python datasets/prepare_clipart.py --root /data --num-train 2000
    python datasets/prepare_clipart.py --images-only my_pictures --num 20

The same seed and sizes give the same files, byte by byte, however many workers there are. A
folder that is complete for the settings asked for is left alone.
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from rose_d2.data.datasets.clipart import NUM_SCENES
from rose_d2.synthetic.clipart import BenchmarkSettings, write_benchmark, write_sample_images


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; `arguments` replaces sys.argv[1:]."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")),
        help="folder that gets clipart/ (default: $DETECTRON2_DATASETS, else ./datasets)",
    )
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
        "--num-workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes; changes the time, never the files (default: number of cores)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a folder made with other settings"
    )
    parser.add_argument(
        "--images-only",
        nargs="?",
        type=Path,
        const=Path("output/demo/images"),
        metavar="DIR",
        help="write only a few pictures to try the demo on (default DIR: output/demo/images)",
    )
    parser.add_argument("--num", type=int, default=8, help="pictures of --images-only (default: 8)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # A polite kill cleans up like Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.images_only is not None:
            paths = write_sample_images(args.images_only.expanduser(), args.num, args.seed)
            print(f"{len(paths)} pictures are in {args.images_only}")
            return 0
        settings = BenchmarkSettings(
            seed=args.seed,
            num_scenes={
                "train": args.num_train,
                "val": args.num_val,
                "val_unseen": args.num_val_unseen,
            },
        )
        write_benchmark(
            settings,
            args.root.expanduser() / "clipart",
            num_workers=args.num_workers,
            overwrite=args.overwrite,
        )
    except (ValueError, OSError) as error:
        print(f"prepare_clipart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare_clipart: interrupted; nothing was left behind.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
