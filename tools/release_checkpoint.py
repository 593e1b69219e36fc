r"""Make a small folder to publish from a finished training run.

    python tools/release_checkpoint.py --run output/rose_tiny --output checkpoints/rose_tiny

Writes `model.safetensors` in half precision and without the training state, the config, the
metrics and the progress lines of the log; no path of the machine gets into them.
Evaluate the result, not the original: `train_net.py --eval-only MODEL.WEIGHTS <output>`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from rose_d2.checkpoint.weights import read_safetensors
from rose_d2.command_line import make_parser, run_main

PROGRESS = ("d2.utils.events", "rose_d2.data.build]: Training on")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="OUTPUT_DIR of the training run")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--checkpoint", help="checkpoint folder inside --run (default: the last one)"
    )
    return parser.parse_args(arguments)


def release(run: Path, checkpoint: str | None, output: Path) -> None:
    """Write the files of a release.

    Args:
        run: OUTPUT_DIR of a run.
        checkpoint: name of a checkpoint folder in it; None takes the last.
        output: folder to write; existing files of the same names are replaced.

    Raises:
        FileNotFoundError: if the run or its checkpoint is not there.
        ValueError: if the weights are damaged.
    """
    name = checkpoint or (run / "last_checkpoint").read_text().strip()
    tensors, metadata = read_safetensors(str(run / name / "model.safetensors"))
    output.mkdir(parents=True, exist_ok=True)
    half = {key: _halved(tensor) for key, tensor in tensors.items()}
    weights = output / "model.safetensors"
    save_file(half, weights, metadata)
    weights.chmod(0o644)  # save_file lets only the owner read
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["OUTPUT_DIR"] = f"./output/{output.name}"
    (output / "config.yaml").write_text(yaml.safe_dump(config))
    # A resumed run has written the steps since its checkpoint twice: the later ones count.
    rows = {json.loads(row)["iteration"]: row for row in _lines(run / "metrics.json")}
    (output / "metrics.json").write_text("\n".join(rows[step] for step in sorted(rows)) + "\n")
    progress = [line for line in _lines(run / "log.txt") if any(word in line for word in PROGRESS)]
    (output / "log.txt").write_text("\n".join(progress) + "\n")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.dtype == torch.float32 else tensor


def release_and_report(args: argparse.Namespace) -> None:
    """Release, and say where."""
    release(args.run, args.checkpoint, args.output)
    size = (args.output / "model.safetensors").stat().st_size / 1e6
    print(f"{args.output}: model.safetensors has {size:.1f} MB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(release_and_report, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
