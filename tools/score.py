r"""Score saved predictions without running the model.

    python train_net.py --config-file configs/rose_tiny.yaml --eval-only --save-predictions \
        MODEL.WEIGHTS checkpoints/rose_tiny
    python tools/score.py output/rose_tiny/predictions

gives the numbers of the evaluation again, or with other settings of the scoring at the end:
    python tools/score.py output/rose_tiny/predictions --opts TEST.RANK_BY_NAME False

The config is the one saved beside the predictions. results.json and report.md are written into the
folder `rescored` beside the predictions.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.evaluation import print_csv_format
from detectron2.utils.logger import setup_logger

import rose_d2  # noqa: F401  (registers the datasets)
from rose_d2.command_line import add_config_arguments, make_parser, run_main
from rose_d2.engine.evaluate import SavedRun
from rose_d2.evaluation.predictions import DESCRIPTION_NAME
from rose_d2.files import FolderLock
from rose_d2.reports.record import run_record, write_record
from rose_d2.reports.report import write_report


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "predictions", type=Path, help="OUTPUT_DIR/predictions, or one dataset's folder in it"
    )
    parser.add_argument(
        "--dataset", action="append", help="score only this one; repeat for several (default: all)"
    )
    parser.add_argument(
        "--output-dir", type=Path, help="default: the folder `rescored` beside the predictions"
    )
    add_config_arguments(parser, required=False)  # default: the one saved beside the predictions
    return parser.parse_args(arguments)


def find_folders(predictions: Path, datasets: list[str] | None) -> list[Path]:
    """The folders of the datasets to score.

    Raises:
        FileNotFoundError: there is none, or not of a dataset asked for.
    """
    is_one = (predictions / DESCRIPTION_NAME).is_file()
    found = (
        [predictions]
        if is_one
        else sorted(p.parent for p in predictions.glob("*/" + DESCRIPTION_NAME))
    )
    names = [folder.resolve().name for folder in found]
    if not found or not set(datasets or ()) <= set(names):
        raise FileNotFoundError(
            f"No predictions of {', '.join(datasets or ['any dataset'])} in {predictions}; there "
            f"are {', '.join(names) or 'none'}. `train_net.py --eval-only --save-predictions` "
            "writes them into OUTPUT_DIR/predictions."
        )
    return [f for f, name in zip(found, names, strict=True) if not datasets or name in datasets]


def score(args: argparse.Namespace) -> Path:
    """Score what the command line asks for; returns the folder of the results."""
    output_dir = args.output_dir or args.predictions.resolve().parent / "rescored"
    lock = FolderLock(output_dir, purpose="--output-dir")
    try:
        return _score_into(args, output_dir)
    finally:
        lock.release()


def _score_into(args: argparse.Namespace, output_dir: Path) -> Path:
    results = {}
    for folder in find_folders(args.predictions, args.dataset):
        run = SavedRun(folder, config_file=args.config_file, opts=args.opts)
        results[run.dataset_name] = run.score(str(output_dir))
        print_csv_format(results[run.dataset_name])
    record = run_record(run.cfg, results, run.cfg.MODEL.WEIGHTS, run.checkpoint_sha256)
    write_record(record, str(output_dir))
    write_report(run.cfg, results, str(output_dir), record)
    return output_dir


def score_and_report(args: argparse.Namespace) -> None:
    """Score, and say where the results are."""
    for name in ("rose_d2", "detectron2"):
        setup_logger(name=name)
    print(f"Results are in {score(args)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(score_and_report, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
