r"""Train or evaluate ROSE.

    python train_net.py --config-file configs/rose_tiny.yaml --num-gpus 1
    python train_net.py --config-file configs/rose_tiny.yaml --resume
    python train_net.py --config-file configs/rose_tiny.yaml --eval-only MODEL.WEIGHTS weights/

on your own data, with nothing to register:
    python train_net.py --config-file configs/rose_tiny.yaml --custom-coco images/ train.json
    python train_net.py --config-file configs/rose_tiny.yaml --custom-coco images/ val.json \
        --eval-only MODEL.WEIGHTS output/rose_tiny

Without a GPU, `--num-gpus 2` starts two CPU processes.
"""

import argparse
import sys
from typing import Any

from detectron2.engine import default_argument_parser, launch

import rose_d2  # noqa: F401  (registers the model and the datasets)
from rose_d2.engine.custom_data import add_custom_data_arguments
from rose_d2.engine.defaults import RoseTrainer, evaluate_weights, setup


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse detectron2's command line; `--config-file` is required."""
    parser = default_argument_parser(epilog=__doc__)
    add_custom_data_arguments(parser)
    args = parser.parse_args(argv)
    if not args.config_file:
        parser.error("--config-file is required, for example configs/rose_tiny.yaml")
    return args


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run one process of the job."""
    cfg = setup(args)
    if args.eval_only:
        return evaluate_weights(cfg, resume=args.resume)
    trainer = RoseTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = parse_args(sys.argv[1:])
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
