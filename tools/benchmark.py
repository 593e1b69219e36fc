r"""Measure speed and memory.

    python tools/benchmark.py data                               # built-in COCO-like pictures
    python tools/benchmark.py data --dataset coco_2017_train --dataset refcoco_unc_train
    python tools/benchmark.py data --memory --num 10000          # does a worker's memory stay flat?
    python tools/benchmark.py eval --config-file configs/rose_tiny.yaml \
        --dataset clipart_panoptic_val --num 100 --opts MODEL.WEIGHTS checkpoints/rose_tiny
    python tools/benchmark.py train --config-file configs/rose_tiny.yaml   # optimizer steps
    python tools/benchmark.py train --num-objects 10 50 200                # and of full scenes
    python tools/benchmark.py infer --config-file configs/rose_tiny.yaml --batch-size 1 4
    python tools/benchmark.py infer --dataset clipart_panoptic_val --num 40 \
        --opts MODEL.WEIGHTS checkpoints/rose_tiny                         # as it is used
    python tools/benchmark.py compare --image photo.jpg --opts MODEL.WEIGHTS checkpoints/rose_tiny
    python tools/benchmark.py compare --dataset clipart_instance_val --dataset clipart_panoptic_val
    python tools/benchmark.py roof --config-file configs/rose_7b.yaml      # without a GPU
    python tools/benchmark.py sweep --output speed.png          # objects, pixels, batch: a picture

`data` reports how many images a second one process prepares, at the image size of
configs/rose_7b.yaml (672 for the language model, 1024 for SAM) or of another config, and where the
time goes. `eval` reports, per image, the time of the model and of each evaluator of a dataset, one
after the other, and how memory grows. `train` and `infer` build the model of a config in its true
size with random weights and run it on made-up images, so they need no checkpoint and no dataset;
they report the time of each part, images a second, the peak memory and the FLOP/s achieved.
`compare` lets ROSE and others take turns: a stack of names and <SEG> tokens (paper, Table 3) with
the same number of objects, segment-anything's mask generator and transformers' `generate` with the
same weights; with datasets, detectron2's evaluators and its mapper instead. `sweep` is `infer`
with 1 to 100 objects, 0.3 to 48 megapixels and 1 to 8 images a batch. `roof` runs a model of
any size on tensors without values and reports, by part, the operations, the bytes moved and the
least time in which an H200 could do them.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

import rose_d2  # noqa: F401  (registers the model and the datasets)
from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.command_line import add_config_arguments, make_parser, run_main
from rose_d2.config.read import read_config
from rose_d2.data.build import build_rose_test_loader
from rose_d2.data.image_io import read_image
from rose_d2.engine.evaluate import check_test_datasets
from rose_d2.engine.trainer import RoseTrainer
from rose_d2.evaluation.build import build_evaluator
from rose_d2.predictor.predictor import RosePredictor
from rose_d2.profiling.comparison import (
    compare_evaluators,
    compare_mappers,
    compare_with_generate,
    compare_with_sam,
    compare_with_stack,
)
from rose_d2.profiling.inputs import FEW_OBJECTS
from rose_d2.profiling.pipeline import (
    COCO_LIKE,
    measure_evaluation,
    measure_memory,
    measure_throughput,
    register_coco_like,
)
from rose_d2.profiling.pretended_gpu import inference, training_step
from rose_d2.profiling.roofline import report_work
from rose_d2.profiling.steps import (
    measure_answers,
    measure_inference,
    measure_training,
    report_step,
)
from rose_d2.profiling.sweep import sweep
from rose_d2.reports.line_plot import Panel, save_panels

# Training samples that one run of two mappers makes each.
_MAPPED_IMAGES = 100


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_data(commands.add_parser("data", help="images a second of the data pipeline"))
    _add_evaluation(commands.add_parser("eval", help="time and memory of the evaluators"))
    train = commands.add_parser("train", help="time, memory and FLOP/s of training steps")
    _add_integers(train, "--num-objects", [FEW_OBJECTS], "objects in each image, one by one")
    infer = commands.add_parser("infer", help="time, memory and FLOP/s of inference")
    _add_integers(infer, "--batch-size", [1], "images at once")
    infer.add_argument(
        "--dataset",
        help="measure MODEL.WEIGHTS on the images of this registered dataset, in place of random "
        "weights, with which all of the top K are kept and named: the most there can be",
    )
    compare = commands.add_parser("compare", help="ROSE side by side with others")
    _add_comparison(compare)
    _add_roof(commands.add_parser("roof", help="least time by part on an H200; needs none"))
    sweeping = commands.add_parser("sweep", help="draw how time and memory of inference grow")
    sweeping.add_argument(
        "--output", type=Path, default=Path("speed.png"), help="picture (default: %(default)s)"
    )
    for command in (train, infer, compare, sweeping):
        command.add_argument(
            "--num", type=int, default=5, help="steps or pairs to measure (default: %(default)s)"
        )
        add_config_arguments(command, default="configs/rose_tiny.yaml")
    return parser.parse_args(arguments)


def _add_integers(
    command: argparse.ArgumentParser, name: str, default: list[int], meaning: str
) -> None:
    shown = " ".join(map(str, default))
    command.add_argument(
        name,
        type=int,
        nargs="+",
        default=default,
        metavar="N",
        help=f"{meaning} (default: {shown})",
    )


def _add_data(command: argparse.ArgumentParser) -> None:
    add_config_arguments(command, default="configs/rose_7b.yaml")
    command.add_argument(
        "--dataset",
        action="append",
        help="registered name, or name@task; repeat for several (default: pictures of 640 x 480 "
        "with ten polygons each, drawn for the purpose)",
    )
    command.add_argument(
        "--num", type=int, default=200, help="samples per dataset (default: %(default)s)"
    )
    command.add_argument(
        "--memory",
        action="store_true",
        help="instead of the speed, report the memory a loader worker has for itself",
    )


def _add_evaluation(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dataset", action="append", required=True, help="repeat for several")
    command.add_argument(
        "--num", type=int, default=100, help="images per dataset (default: %(default)s)"
    )
    add_config_arguments(command, default="configs/rose_tiny.yaml")


def _add_comparison(command: argparse.ArgumentParser) -> None:
    meaning = "objects of the answers by patches and as a stack"
    _add_integers(command, "--num-objects", [1, 10, 30, 100], meaning)
    command.add_argument(
        "--image", help="what ROSE and SamAutomaticMaskGenerator segment (default: noise)"
    )
    command.add_argument(
        "--dataset",
        action="append",
        default=[],
        help="compare with detectron2 instead, on the images of this registered dataset: its "
        "evaluator, and for instances its mapper; repeat for several",
    )


def _add_roof(command: argparse.ArgumentParser) -> None:
    _add_integers(command, "--batch-size", [1, 8], "images at once, of inference")
    meaning = "candidates of an image, all kept and named, of inference"
    _add_integers(command, "--num-objects", [10, 100], meaning)
    command.add_argument(
        "--micro-batch",
        type=int,
        default=2,
        help=f"images of {FEW_OBJECTS} objects in a training step (default: %(default)s)",
    )
    add_config_arguments(command, default="configs/rose_7b.yaml")


def make_config(args: argparse.Namespace) -> CfgNode:
    """The config of the command line; every sample trains, so a missing seed is 0."""
    cfg = read_config(args.config_file, args.opts)
    cfg.SEED = max(cfg.SEED, 0)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
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


def load_model(cfg: CfgNode) -> torch.nn.Module:
    """The model with MODEL.WEIGHTS, in evaluation mode."""
    model = RoseTrainer.build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        RoseCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    else:
        print("MODEL.WEIGHTS is empty: random weights find other things than trained ones")
    return model


def report_evaluation(cfg: CfgNode, dataset: str, num: int) -> None:
    """Print what evaluating one dataset costs beside the model."""
    check_test_datasets([dataset])
    model = load_model(cfg)
    loader = build_rose_test_loader(cfg, dataset)
    with tempfile.TemporaryDirectory() as folder:
        evaluator = build_evaluator(cfg, dataset, folder)
        cost = measure_evaluation(model, loader, evaluator, num)
    print(f"{dataset}: {cost.num_images} images, milliseconds per image")
    print(f"    {cost.model:9.2f}  model")
    print(f"    {cost.data:9.2f}  waiting for data")
    for name, milliseconds in cost.process.items():
        finish = cost.finish[name]
        at_the_end = "not measured" if finish is None else f"{finish:.2f}"
        print(f"    {milliseconds:9.2f}  {name} (at the end, divided by the images: {at_the_end})")
    print(f"    evaluators take {100 * cost.share:.1f} % of the model's time")
    print(
        f"    per 100 images the evaluators hold {cost.state:.2f} MB more (the outputs, saved, "
        f"take {cost.encoded:.2f} MB); the whole process {cost.memory_growth:+.1f} MB"
    )


def report_training(cfg: CfgNode, num: int, num_objects: int) -> None:
    """Print what optimizer steps of one process cost."""
    cost = measure_training(cfg, num, num_objects)
    title = (
        f"training: {cfg.SOLVER.IMS_PER_BATCH} images of {num_objects} objects x "
        f"{cfg.SOLVER.ACCUMULATION_STEPS} "
        f"micro-batches a step, engine {cfg.SOLVER.ENGINE}"
    )
    print(report_step(title, cfg, cost))


def report_inference(cfg: CfgNode, batch_size: int, num: int) -> None:
    """Print what one batch at inference costs at most."""
    cost = measure_inference(cfg, batch_size, num)
    title = f"inference: {batch_size} images, top {cfg.TEST.TOP_K}, all of them named"
    print(report_step(title, cfg, cost))


def report_answers(cfg: CfgNode, dataset: str, batch_size: int, num: int) -> None:
    """Print what one batch of a dataset's images costs with trained weights."""
    check_test_datasets([dataset])
    cfg.TEST.IMS_PER_BATCH = batch_size
    loader = build_rose_test_loader(cfg, dataset)
    batches = [batch for batch in itertools.islice(loader, num) if len(batch) == batch_size]
    if not batches:
        raise ValueError(f"{dataset} has less than {batch_size} images; use a smaller batch.")
    cost = measure_answers(load_model(cfg), batches)
    title = f"inference: {batch_size} images of {dataset}, means and median of {len(batches)}"
    print(report_step(title, cfg, cost))


def report_comparisons(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Print ROSE beside what does the same."""
    check_test_datasets(args.dataset)
    for dataset in args.dataset:
        print(compare_evaluators(dataset, args.num).report(), flush=True)
        if MetadataCatalog.get(dataset).evaluator_type == "coco":
            print(compare_mappers(cfg, dataset, args.num, _MAPPED_IMAGES).report(), flush=True)
    if args.dataset:
        return
    for num_objects in args.num_objects:
        print(compare_with_stack(cfg, num_objects, args.num).report())
    if args.image:
        image = read_image(args.image)[:, :, ::-1]
    else:
        image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    predictor = RosePredictor(cfg)
    print(compare_with_sam(predictor, image, args.num).report())
    print(compare_with_generate(predictor.model, cfg.TEST.TOP_K, args.num).report())


def report_roofs(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Print the least time of inference and of a training step."""
    for num_objects, batch_size in itertools.product(args.num_objects, args.batch_size):
        cfg.TEST.TOP_K = num_objects
        title = f"inference: {batch_size} images, {num_objects} objects in each kept and named"
        print(report_work(title, inference(cfg, batch_size).parts, batch_size), flush=True)
    title = f"a training step: {args.micro_batch} images of {FEW_OBJECTS} objects"
    print(report_work(title, training_step(cfg, args.micro_batch).parts, args.micro_batch))


def draw_sweep(cfg: CfgNode, num: int, path: Path) -> None:
    """Draw time and memory against objects, pixels and images of a batch, and print them."""
    points = sweep(cfg, num)
    drawn = {
        "seconds an image": lambda cost: cost.seconds / cost.num_images,
        "GB at the fullest moment": lambda cost: cost.peak_memory / 1e9,
    }
    panels = []
    for title, value in drawn.items():
        for axis, costs in points.items():
            line = [(place, value(cost)) for place, cost in costs]
            panels.append(Panel(title, axis, {"": line}, logarithmic=True))
            print(f"{title}, {axis}: " + ", ".join(f"{x:g}: {y:.3g}" for x, y in line))
    save_panels(panels, path)
    print(f"The plot is {path}.")


def benchmark(args: argparse.Namespace) -> None:
    """Measure what the command asks for and print it."""
    cfg = make_config(args)
    if args.command == "eval":
        for dataset in args.dataset:
            report_evaluation(cfg, dataset, args.num)
    elif args.command == "train":
        for num_objects in args.num_objects:
            report_training(cfg, args.num, num_objects)
    elif args.command == "infer":
        for batch_size in args.batch_size:
            if args.dataset:
                report_answers(cfg, args.dataset, batch_size, args.num)
            else:
                report_inference(cfg, batch_size, args.num)
    elif args.command == "compare":
        report_comparisons(cfg, args)
    elif args.command == "roof":
        report_roofs(cfg, args)
    elif args.command == "sweep":
        draw_sweep(cfg, args.num, args.output)
    else:
        report = report_memory if args.memory else report_speed
        with tempfile.TemporaryDirectory() as folder:
            if not args.dataset:
                register_coco_like(Path(folder), num_images=min(args.num, 200))
            for dataset in args.dataset or [COCO_LIKE]:
                report(cfg, dataset, args.num)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(benchmark, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
