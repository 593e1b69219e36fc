r"""Make a page of saved predictions: best, worst and random images beside their ground truth.

    python train_net.py --config-file configs/rose_tiny.yaml --eval-only --save-predictions \
        MODEL.WEIGHTS checkpoints/rose_tiny
    python tools/visualize_results.py output/rose_tiny/predictions \
        --dataset clipart_panoptic_val --output output/clipart_panoptic_val.html --num 12

The page is one HTML file that needs no network: pictures are inside, at most 15 MB. Every image
has a score of its own (semantic: mIoU; instance: F1 at IoU 0.5; panoptic: PQ; referring: IoU).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import rose_d2  # noqa: F401  (registers the datasets)
from rose_d2.command_line import make_parser, run_main
from rose_d2.data.datasets.custom import register_custom
from rose_d2.evaluation.predictions import DESCRIPTION_NAME
from rose_d2.files import write_text
from rose_d2.reports.image_scores import SavedPredictions, ScoredImage, choose_images
from rose_d2.reports.page import build_page

_SAY_EVERY_SECONDS = 10


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "predictions", type=Path, help="OUTPUT_DIR/predictions, or one dataset's folder in it"
    )
    parser.add_argument("--dataset", help="registered name (default: the one they were made on)")
    parser.add_argument("--output", type=Path, required=True, help="page to write, .html")
    parser.add_argument("--num", type=int, default=12, help="images of each kind")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other images")
    parser.add_argument(
        "--score-thresh", type=float, default=0.5, help="least objectness of an instance"
    )
    args = parser.parse_args(arguments)
    if args.num < 1:
        parser.error(f"--num is {args.num}: show at least 1 image of each kind")
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder: name a file in it, such as page.html")
    return args


def find_folder(predictions: Path, dataset: str | None) -> Path:
    """The folder of one dataset.

    Args:
        predictions: that folder, or the one with a folder per dataset.
        dataset: decides between several; None is enough if there is only one.

    Raises:
        FileNotFoundError: there are no predictions, or none of the dataset.
        ValueError: there are several datasets and none is named.
    """
    found = {path.parent.name: path.parent for path in predictions.glob(f"*/{DESCRIPTION_NAME}")}
    if (predictions / DESCRIPTION_NAME).is_file() or not found:
        return predictions  # the store says what is wrong with it
    names = ", ".join(sorted(found))
    if dataset is None and len(found) > 1:
        raise ValueError(f"{predictions} has predictions of {names}; name one with --dataset.")
    if dataset is not None and dataset not in found:
        raise FileNotFoundError(
            f"No predictions of {dataset} in {predictions}; there are {names}. `train_net.py "
            "--eval-only --save-predictions` writes them into OUTPUT_DIR/predictions."
        )
    return found[dataset] if dataset else next(iter(found.values()))


def custom_data(folder: Path) -> list[Any]:
    """DATASETS.CUSTOM of the evaluation, from the config beside the predictions."""
    config = folder / "config.yaml"
    if not config.is_file():
        return []
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    return (content.get("DATASETS") or {}).get("CUSTOM") or []


def score_all(saved: SavedPredictions) -> list[ScoredImage]:
    """Score every prediction and say how far it is from time to time."""
    scored: list[ScoredImage] = []
    said = time.monotonic()
    for image in saved.score_all():
        scored.append(image)
        if time.monotonic() - said > _SAY_EVERY_SECONDS:
            print(f"{len(scored)} of {len(saved.keys)} images scored", flush=True)
            said = time.monotonic()
    return scored


def visualize(args: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    folder = find_folder(args.predictions, args.dataset)
    register_custom(custom_data(folder))
    saved = SavedPredictions(folder, args.dataset, args.score_thresh)
    scored = score_all(saved)
    selection = choose_images(scored, args.num, args.seed)
    write_text(args.output, build_page(saved, scored, selection, args.seed))
    size = args.output.stat().st_size / 1e6
    print(f"{len(scored)} predictions on {saved.dataset}: {args.output} ({size:.1f} MB)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(visualize, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
