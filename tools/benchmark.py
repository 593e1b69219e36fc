"""Measure speed and memory.

    python tools/benchmark.py data                               # built-in COCO-like pictures
    python tools/benchmark.py data --dataset coco_2017_train --dataset refcoco_unc_train
    python tools/benchmark.py data --memory --num 10000          # does a worker's memory stay flat?

`data` reports how many images a second one process prepares, at the image size of
configs/rose_7b.yaml (672 for the language model, 1024 for SAM) or of another config, and where the
time goes.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from rose_d2.config import add_rose_config
from rose_d2.data.benchmark import (
    COCO_LIKE,
    measure_memory,
    measure_throughput,
    register_coco_like,
)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="images a second of the data pipeline")
    data.add_argument("--config-file", default="configs/rose_7b.yaml", help="default: %(default)s")
    data.add_argument(
        "--dataset",
        action="append",
        help="registered name, or name@task; repeat for several (default: pictures of 640 x 480 "
        "with ten polygons each, drawn for the purpose)",
    )
    data.add_argument(
        "--num", type=int, default=200, help="samples per dataset (default: %(default)s)"
    )
    data.add_argument(
        "--memory",
        action="store_true",
        help="instead of the speed, report the memory a loader worker has for itself",
    )
    data.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="changes to the config, at the end"
    )
    return parser.parse_args(arguments)


def make_config(args: argparse.Namespace) -> CfgNode:
    """The config of the command line; every sample trains, so a missing seed is 0."""
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.SEED = max(cfg.SEED, 0)
    return cfg


def report_speed(cfg: CfgNode, dataset: str, num: int) -> None:
    """Print one dataset's images a second and the share of each stage."""
    result = measure_throughput(cfg, dataset, num)
    print(f"{dataset}: {result.images_per_second:.1f} images a second in one process")
    for stage, share in result.shares.items():
        print(f"    {100 * share:5.1f} %  {stage}")


def report_memory(cfg: CfgNode, dataset: str, num: int) -> None:
    """Print the worker's own memory at ten moments."""
    print(f"{dataset}: memory of one worker, shared pages left out")
    for samples, megabytes in measure_memory(cfg, dataset, num):
        print(f"    {samples:7d} samples  {megabytes:8.1f} MB")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(arguments)
    report = report_memory if args.memory else report_speed
    try:
        cfg = make_config(args)
        with tempfile.TemporaryDirectory() as folder:
            if not args.dataset:
                register_coco_like(Path(folder), num_images=min(args.num, 200))
            for dataset in args.dataset or [COCO_LIKE]:
                report(cfg, dataset, args.num)
    except (ValueError, OSError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
