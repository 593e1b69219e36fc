r"""Measure how well a model answers about regions, on first turns made from the ground truth.

    python tools/measure_refinement.py --config-file configs/rose_tiny.yaml --num 200 --seeds 3 \
        MODEL.WEIGHTS checkpoints/rose_tiny

One object of every image is refined three times: from a mask corrupted to an IoU of 0.5 to 0.7,
from such a mask under a wrong name, and from its box alone; and it is named twice, shown by its
true mask and by its true box. TEST.REFINEMENT says whose boxes are named and whether a better mask
stays. Prints a table and the same as JSON: means over the seeds and their standard deviation, in
percent.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from detectron2.data import MetadataCatalog

import rose_d2  # noqa: F401  (registers the model and the datasets)
from rose_d2.command_line import add_config_arguments, make_parser, run_main
from rose_d2.config.read import read_released_config
from rose_d2.data.build import load_dataset_dicts
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.engine.evaluate import check_test_datasets
from rose_d2.predictor.predictor import RosePredictor
from rose_d2.refinement.regions import RefinementSettings
from rose_d2.refinement.synthetic_turns import refine_synthetic_turns, summarise


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--dataset", default="clipart_panoptic_val", help="a registered dataset with object masks"
    )
    parser.add_argument("--num", type=int, default=200, help="images, from the first; 0: all")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions with other corruptions")
    args = parser.parse_args(arguments)
    if args.seeds < 1 or args.num < 0:
        parser.error("--seeds must be at least 1 and --num at least 0")
    return args


def measure(args: argparse.Namespace) -> None:
    """Print the table and the JSON."""
    check_test_datasets([args.dataset])
    cfg = read_released_config(args.config_file, args.opts)
    model = RosePredictor(cfg).model
    dicts = load_dataset_dicts(args.dataset, filter_empty=True)[: args.num or None]
    metadata = MetadataCatalog.get(args.dataset)
    has_stuff = metadata.evaluator_type in ("sem_seg", "coco_panoptic_seg")
    names = metadata.stuff_classes if has_stuff else metadata.thing_classes
    runs = [
        refine_synthetic_turns(
            model,
            dicts,
            RoseDatasetMapper(cfg, is_train=False),
            [name.split(",")[0].strip() for name in names],
            min_pixels=cfg.INPUT.REFINEMENT.MIN_PIXELS,
            unseen=metadata.get("unseen_classes", ()),
            seed=seed,
            batch_size=cfg.TEST.IMS_PER_BATCH,
            settings=RefinementSettings.from_config(cfg),
        )
        for seed in range(args.seeds)
    ]
    summary = summarise(runs)
    print_table(summary)
    print(json.dumps({"images": len(dicts), "seeds": args.seeds, **summary}, indent=2))


def print_table(summary: dict[str, dict[str, tuple[float, float]]]) -> None:
    """One row a metric, one column a situation."""
    print(f"{'%':<20}" + "".join(f"{situation:>16}" for situation in summary))
    for metric in next(iter(summary.values())):
        cells = [
            f"{mean:.1f} ± {spread:.1f}" for mean, spread in (s[metric] for s in summary.values())
        ]
        print(f"{metric:<20}" + "".join(f"{cell:>16}" for cell in cells))
    print()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(measure, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
