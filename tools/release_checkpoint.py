r"""Make a small folder to publish from a finished training run.

    python tools/release_checkpoint.py --run output/rose_tiny --output checkpoints/rose_tiny
    python tools/release_checkpoint.py --run output/more --after checkpoints/rose_tiny \
        --share 0.7 --output checkpoints/rose_tiny    # of a run that went on from that release

Writes `model.safetensors` in half precision and without the training state, the config, the
metrics and the progress lines of the log; no path of the machine gets into them.
Evaluate the result, not the original: `train_net.py --eval-only MODEL.WEIGHTS <output>`.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
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
    parser.add_argument(
        "--after",
        type=Path,
        metavar="FOLDER",
        help="the release that the run started from: steps are counted on from its last",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of the run in the weights, the rest is of --after; a mean of both is often better "
        "than either (Wortsman et al., CVPR 2022) (default: 1, the run alone)",
    )
    args = parser.parse_args(arguments)
    if not 0 < args.share <= 1 or (args.share < 1 and args.after is None):
        parser.error(f"--share is above 0 and at most 1, below 1 with --after, got {args.share}")
    return args


def release(
    run: Path, checkpoint: str | None, output: Path, after: Path | None = None, share: float = 1.0
) -> None:
    """Write the files of a release.

    Args:
        run: OUTPUT_DIR of a run.
        checkpoint: name of a checkpoint folder in it; None takes the last.
        output: folder to write; existing files of the same names are replaced.
        after: the release that the run started from; may be `output`.
        share: of the run's weights in the mean of both, 0 to 1.

    Raises:
        FileNotFoundError: if the run or its checkpoint is not there.
        ValueError: if weights are damaged, or are not of one model.
    """
    name = checkpoint or (run / "last_checkpoint").read_text().strip()
    tensors, metadata = read_safetensors(str(run / name / "model.safetensors"))
    rows, progress = _rows(run), _progress(run)
    if after is not None:
        tensors = _mean(tensors, read_safetensors(str(after / "model.safetensors"))[0], share)
        before = _rows(after)
        rows = before | {max(before) + 1 + step: row for step, row in rows.items()}
        progress = _progress(after) + progress
    output.mkdir(parents=True, exist_ok=True)
    half = {key: _halved(tensor) for key, tensor in tensors.items()}
    weights = output / "model.safetensors"
    save_file(half, weights, metadata)
    weights.chmod(0o644)  # save_file lets only the owner read
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["OUTPUT_DIR"] = f"./output/{output.name}"
    (output / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [json.dumps(rows[step] | {"iteration": step}) for step in sorted(rows)]
    (output / "metrics.json").write_text("\n".join(lines) + "\n")
    (output / "log.txt").write_text("\n".join(progress) + "\n")


def _rows(folder: Path) -> dict[int, dict]:
    """The metrics by step. A resumed run has written some twice: the later ones count."""
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {row["iteration"]: row for row in rows}


def _progress(folder: Path) -> list[str]:
    lines = (folder / "log.txt").read_text().splitlines()
    return [line for line in lines if any(word in line for word in PROGRESS)]


def _mean(
    tensors: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """`share` of the first and the rest of the second."""
    if tensors.keys() != others.keys():
        different = ", ".join(sorted(tensors.keys() ^ others.keys()))
        raise ValueError(f"The weights of --run and --after are not of one model: {different}")
    return {
        name: others[name].to(tensor.dtype).lerp(tensor, share)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.dtype == torch.float32 else tensor


def release_and_report(args: argparse.Namespace) -> None:
    """Release, and say where."""
    release(args.run, args.checkpoint, args.output, args.after, args.share)
    size = (args.output / "model.safetensors").stat().st_size / 1e6
    print(f"{args.output}: model.safetensors has {size:.1f} MB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(release_and_report, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
