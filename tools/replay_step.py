"""Compute a training step again that a run stopped at because of NaN or infinity.

    python tools/replay_step.py output/rose_7b/non_finite/iter_0000123

The run wrote its config, the weights, the images and targets of that step and the states of the
random number generators into the folder. Prints each loss term as the run had it and as it is now,
the first submodule whose output is not finite, and parameters with such gradients.
"""

import argparse
import sys

import rose_d2  # noqa: F401  (registers the model and the datasets)
from rose_d2.engine.steps.step_replay import replay_step, report_replay


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="the dump, named by the message of the stopped run")
    parser.add_argument("--rank", type=int, help="whose part of the step; default: the first")
    parser.add_argument("--device", help="cpu or cuda; default: that of the run, if it is there")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Print the report."""
    args = parse_args(argv)
    try:
        print(report_replay(*replay_step(args.folder, rank=args.rank, device=args.device)))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"replay_step.py: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
