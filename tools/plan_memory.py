r"""Plan the memory of training and inference without a GPU and without weights.

    python tools/plan_memory.py --config-file configs/rose_7b.yaml --num-gpus 8 --gpu-memory 80
    python tools/plan_memory.py --config-file configs/rose_0p5b.yaml --gpu-memory 24 \
        --opts SOLVER.DEEPSPEED.ZERO_STAGE 1

The model of the config runs its own forward and backward pass on tensors that have a shape but no
values, so activations are counted and not estimated; weights, gradients and optimizer follow from
the step engine and the ZeRO stage. What PyTorch itself, NCCL and the fragmentation of memory take
is covered by --reserve. The exit status is 0 if training as configured fits, 2 if it does not.
"""

import argparse
import sys
from collections.abc import Sequence

import rose_d2  # noqa: F401  (registers the model)
from rose_d2.command_line import add_config_arguments, make_parser, run_main
from rose_d2.config.read import read_config
from rose_d2.profiling.inputs import MANY_OBJECTS
from rose_d2.profiling.memory_plan import MemoryPlan, plan_inference, plan_training

GIGABYTE = 1e9


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--num-gpus", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--gpu-memory", type=float, required=True, help="of one GPU, in GB (10^9)")
    parser.add_argument(
        "--reserve",
        type=float,
        default=10.0,
        help="percent of a GPU's memory to leave free (default: %(default)s)",
    )
    parser.add_argument(
        "--num-objects",
        type=int,
        default=MANY_OBJECTS,
        help="in each image of a training step (default: %(default)s, as in the fullest scenes)",
    )
    parser.add_argument(
        "--only", choices=("training", "inference"), help="plan one of them (default: both)"
    )
    parser.add_argument(
        "--inference-batch", type=int, default=1, help="images at once (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def report(plan: MemoryPlan, available: float) -> bool:
    """Print one plan; return whether it fits into `available` bytes."""
    print(f"\n{plan.title}")
    for name, size in plan.rows.items():
        print(f"    {size / GIGABYTE:9.3f} GB  {name}")
    fits = plan.peak <= available
    fullest = max(plan.moments, key=lambda moment: plan.moments[moment])
    print(f"    {plan.peak / GIGABYTE:9.3f} GB  at the fullest moment: {fullest}")
    verdict = "fits" if fits else "DOES NOT FIT"
    print(f"    {verdict}: {available / GIGABYTE:.3f} GB are available")
    return fits


def plan(args: argparse.Namespace) -> int:
    """Print the plans; the status is 2 where the training does not fit."""
    available = args.gpu_memory * GIGABYTE * (1 - args.reserve / 100)
    fits = True
    cfg = read_config(args.config_file, args.opts)
    print(
        f"{args.config_file}: {args.num_gpus} x {args.gpu_memory:g} GB, "
        f"{args.reserve:g} % in reserve, engine {cfg.SOLVER.ENGINE}"
        + (f", ZeRO {cfg.SOLVER.DEEPSPEED.ZERO_STAGE}" * (cfg.SOLVER.ENGINE == "deepspeed"))
    )
    if args.only != "inference":
        fits = report(plan_training(cfg, args.num_gpus, args.num_objects), available)
        cfg.MODEL.LMM.GRADIENT_CHECKPOINTING = not cfg.MODEL.LMM.GRADIENT_CHECKPOINTING
        report(plan_training(cfg, args.num_gpus, args.num_objects), available)
    if args.only != "training":
        for inference in plan_inference(cfg, args.inference_batch):
            report(inference, available)
    return 0 if fits else 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(plan, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
