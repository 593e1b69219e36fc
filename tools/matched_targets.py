r"""Measure masks and names at the patches that own each target.

    python tools/matched_targets.py --config-file configs/rose_tiny.yaml \
        --dataset clipart_panoptic_val MODEL.WEIGHTS checkpoints/rose_tiny

Finding, ranking and thresholds play no part here: for every annotated target, mask and name are
decoded at its own patch with the highest objectness. It tells a weak mask or name from a weak
objectness when a benchmark score is low.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import rose_d2  # noqa: F401  (registers the model and the datasets)
from rose_d2.command_line import add_config_arguments, make_parser, run_main
from rose_d2.config.read import read_released_config
from rose_d2.data.build import build_rose_target_loader
from rose_d2.engine.evaluate import check_test_datasets
from rose_d2.evaluation.matched_targets import evaluate_matched_targets
from rose_d2.predictor.predictor import RosePredictor


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--dataset", default="clipart_panoptic_val", help="a registered dataset")
    return parser.parse_args(arguments)


def measure(args: argparse.Namespace) -> None:
    """Print the summary as JSON."""
    check_test_datasets([args.dataset])
    cfg = read_released_config(args.config_file, args.opts)
    model = RosePredictor(cfg).model
    loader = build_rose_target_loader(cfg, args.dataset)
    print(json.dumps(evaluate_matched_targets(model, loader).summary(), indent=2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(measure, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
