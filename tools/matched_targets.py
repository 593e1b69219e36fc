r"""Measure masks and names at the patches that own each target.

    python tools/matched_targets.py --config-file configs/rose_tiny.yaml \\
        --dataset clipart_panoptic_val MODEL.WEIGHTS checkpoints/rose_tiny

Finding, ranking and thresholds play no part here: for every annotated target, mask and name are
decoded at its own patch with the highest objectness. It tells a weak mask or name from a weak
objectness when a benchmark score is low.
"""

import argparse
import json
import sys

import rose_d2  # noqa: F401  (registers the model and the datasets)
from rose_d2.config.read import read_config
from rose_d2.data.build import build_rose_target_loader
from rose_d2.engine.evaluate import check_test_datasets
from rose_d2.evaluation.matched_targets import evaluate_matched_targets
from rose_d2.predictor.predictor import RosePredictor


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="the config of the weights")
    parser.add_argument("--dataset", default="clipart_panoptic_val", help="a registered dataset")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Print the summary as JSON."""
    args = parse_args(argv)
    try:
        check_test_datasets([args.dataset])
        cfg = read_config(args.config_file, args.opts)
        model = RosePredictor(cfg).model
    except (OSError, ValueError) as error:
        sys.exit(f"matched_targets.py: error: {error}")
    loader = build_rose_target_loader(cfg, args.dataset)
    print(json.dumps(evaluate_matched_targets(model, loader).summary(), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
