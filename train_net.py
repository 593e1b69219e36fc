r"""Train or evaluate ROSE.

    python train_net.py --config-file configs/rose_tiny.yaml --num-gpus 1
    python train_net.py --config-file configs/rose_tiny.yaml --resume
    python train_net.py --config-file configs/rose_tiny.yaml --eval-only MODEL.WEIGHTS weights/

keeping every answer, so that a stopped evaluation continues and can be scored anew:
    python train_net.py --config-file configs/rose_tiny.yaml --eval-only --save-predictions \
        MODEL.WEIGHTS weights/
    python tools/score.py output/rose_tiny/predictions

before it costs anything, whether all that the run needs is there:
    python train_net.py --config-file configs/rose_7b.yaml --num-gpus 8 --check

on your own data, from released weights, with nothing to register; an export ends it:
    python train_net.py --config-file configs/rose_tiny.yaml --custom-coco images/ train.json \
        --custom-val images/ val.json
    python train_net.py --config-file configs/rose_tiny.yaml --custom-coco images/ val.json \
        --eval-only MODEL.WEIGHTS output/rose_tiny

Without a GPU, `--num-gpus 2` starts two CPU processes. torchrun and the deepspeed launcher start
the processes themselves, and several machines work too: docs/training_at_scale.md.
"""

import argparse
import signal
import sys
from typing import Any

if __name__ == "__main__":
    # The imports take seconds, in which a cluster may take the machine away: start me again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line of detectron2's train_net.py, and what is ours.

    Written out here, and without an import of torch, so that `--help` and mistakes are answered at
    once.
    """
    parser = argparse.ArgumentParser(
        epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", metavar="FILE", required=True, help="for example configs/rose_tiny.yaml"
    )
    add_what_to_do(parser)
    add_data(parser)
    add_processes(parser)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="changes to the config, at the end, such as MODEL.DEVICE cpu SOLVER.MAX_ITER 1000",
    )
    args = parser.parse_args(argv)
    if args.custom_val and (args.eval_only or not (args.custom_coco or args.custom_labels)):
        parser.error("--custom-val goes with training on --custom-coco or --custom-labels")
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error(
            f"--num-machines {args.num_machines} needs the address of machine 0, the same on all: "
            "--dist-url tcp://HOST:PORT"
        )
    if args.overwrite and (args.resume or args.eval_only):
        parser.error("--overwrite starts a training anew: leave out --resume and --eval-only")
    if args.save_predictions or args.overwrite_predictions:
        if not args.eval_only:
            parser.error("--save-predictions goes with --eval-only")
        args.opts += ["TEST.SAVE_PREDICTIONS", "True"]
    return args


def add_what_to_do(parser: argparse.ArgumentParser) -> None:
    """Add the options by which a run trains, goes on, evaluates or only looks."""
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="train anew in an OUTPUT_DIR that has checkpoints, whose names are used again",
    )
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate MODEL.WEIGHTS or, with --resume, the last checkpoint in OUTPUT_DIR",
    )
    parser.add_argument(
        "--save-predictions",
        action="store_true",
        help="with --eval-only: keep every answer in OUTPUT_DIR/predictions (sets "
        "TEST.SAVE_PREDICTIONS); what is there already is not run again",
    )
    parser.add_argument(
        "--overwrite-predictions",
        action="store_true",
        help="the same, but give up predictions of an earlier run",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only look whether all that the run needs is there: packages, weights, tokenizers, "
        "datasets, GPUs, disk and memory; the exit status is 0 if so, else 1",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options by which your own data replace the config's datasets."""
    custom = parser.add_mutually_exclusive_group()
    custom.add_argument(
        "--custom-coco",
        nargs=2,
        metavar=("IMAGES", "JSON"),
        help="use this folder of images with COCO instance annotations instead of the config's "
        "datasets",
    )
    custom.add_argument(
        "--custom-labels",
        nargs=3,
        metavar=("IMAGES", "LABELS", "CLASSES"),
        help="use this folder of images with label PNGs of the same names, whose values are line "
        "numbers, from 0, of the text file CLASSES (a line 'sky: stuff' marks background; the "
        "value 255 is unlabelled)",
    )
    parser.add_argument(
        "--custom-val",
        nargs=2,
        metavar=("IMAGES", "JSON_OR_LABELS"),
        help="evaluate a training with --custom-coco or --custom-labels on these data; without it "
        "one image in five is held out",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add the options about GPUs and machines, as detectron2 has them."""
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="of each machine (default: 1)"
    )
    parser.add_argument(
        "--num-machines", type=int, default=1, metavar="N", help="all in all (default: 1)"
    )
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="N", help="this machine's number, from 0"
    )
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="tcp://HOST:PORT of machine 0; auto, the default, takes a free port of this machine",
    )
    # DeepSpeed's launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run one process of the job."""
    from rose_d2.engine.fine_tuning import finish_fine_tuning, is_fine_tuning
    from rose_d2.engine.trainer import RoseTrainer, evaluate_weights, setup

    if args.eval_only:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cfg = setup(args)
    if args.eval_only:
        return evaluate_weights(
            cfg, resume=args.resume, overwrite_predictions=args.overwrite_predictions
        )
    trainer = RoseTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if is_fine_tuning(args):
        finish_fine_tuning(cfg, trainer.checkpointer.model)
    return results


if __name__ == "__main__":
    arguments = parse_args(sys.argv[1:])
    from rose_d2.engine.launch import run_alone, run_job
    from rose_d2.engine.preflight import check_job

    if arguments.check:
        run_alone(check_job, arguments)
    else:
        run_job(main, arguments, check_job)
