r"""Make one folder to publish or to build upon from a checkpoint of any engine.

    python tools/export_checkpoint.py --config-file configs/rose_7b.yaml \
        --weights output/rose_7b/model_final --output exported/rose_7b

merged (the default): LoRA merged into a Hugging Face folder, SAM, heads and mask decoder, config
and model card; nothing else is needed. The folder is loaded again and has to compute the same.
trainable: what was trained, config and card, without the bases it was trained on.
bases: language model and SAM alone, to be the frozen bases of another training.

Shards of DeepSpeed's own save_checkpoint: first run the zero_to_fp32.py beside them, and give the
folder it writes as --weights.

Use a merged folder as weights: `train_net.py --eval-only MODEL.WEIGHTS exported/rose_7b`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import rose_d2  # noqa: F401  (registers the model)
from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.checkpoint.export import DTYPES, export_bases, export_merged, export_trainable
from rose_d2.checkpoint.weights import consolidated_to_safetensors, is_consolidated, refuse_shards
from rose_d2.command_line import add_config_arguments, make_parser, run_main
from rose_d2.config.read import read_config
from rose_d2.modeling.mask_head import MaskView
from rose_d2.predictor.predictor import RosePredictor, find_weights

NUM_PATCHES = 8
# Largest deviation of an output that is rounding: of float32 sums, or of weights of 8 or 11 bits.
TOLERANCE = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}


@torch.no_grad()
def model_outputs(cfg: CfgNode, model: nn.Module) -> dict[str, torch.Tensor]:
    """Run every part of a model on one fixed picture of noise with a fixed prior mask.

    Args:
        cfg: the config of the model.
        model: a ROSE model; left in evaluation mode.

    Returns:
        Float CPU tensors: patch_features (P, D), objectness_logits (P,), sam_features (E, g, g);
        of `NUM_PATCHES` patches mask_logits (K, m, m), category_embeddings (K, D),
        siglip_embeddings (K, Z) and the token_logits (K, V) of the language model's output layer.
    """
    predictor = RosePredictor(cfg, model)
    noise = np.random.default_rng(0)
    side = cfg.MODEL.LMM.IMAGE_SIZE
    picture = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
    item = predictor.make_input(picture, task="panoptic")
    prior = torch.zeros(1, side, side)
    prior[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    lmm_output, proposals, sam_features = model.perceive([item | {"prior_mask": prior}])
    count = proposals.objectness_logits.shape[1]
    patches = torch.linspace(0, count - 1, NUM_PATCHES).long().to(model.device)
    predictions = model.patch_analyzer.embed(proposals, 0, patches)
    (drawn,) = model.mask_head.decode(sam_features, [predictions], [MaskView.of(item)])
    outputs = {
        "patch_features": lmm_output.patch_features[0],
        "objectness_logits": proposals.objectness_logits[0],
        "sam_features": sam_features[0],
        "mask_logits": drawn.logits,
        "category_embeddings": predictions.category_embeddings,
        "siglip_embeddings": predictions.siglip_embeddings,
        "token_logits": model.backbone.logits(lmm_output.patch_features[0, patches]),
    }
    return {name: value.float().cpu() for name, value in outputs.items()}


def deviations(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Largest difference of each output as a share of the largest value before.

    Args:
        before: of `model_outputs`.
        after: the same, of the other model.
    """
    return {
        name: float((after[name] - value).abs().max() / value.abs().max().clamp(min=1e-12))
        for name, value in before.items()
    }


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--weights", required=True, help="a checkpoint folder or its model.safetensors"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--kind", choices=("merged", "trainable", "bases"), default="merged")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="cast all weights (default: keep each one's)"
    )
    parser.add_argument("--device", default="cpu", help="where merging and checking run")
    parser.add_argument(
        "--no-check", action="store_true", help="merged: do not load and compare the result"
    )
    return parser.parse_args(arguments)


def load(config_file: str, opts: list[str]) -> tuple[CfgNode, nn.Module]:
    """Build a model with its weights."""
    cfg = read_config(config_file, opts)
    model = build_model(cfg)
    RoseCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return cfg, model.eval()


def export(args: argparse.Namespace) -> dict[str, float]:
    """Write the folder.

    Returns:
        For merged exports that are checked, see `deviations`.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: they do not fit, the folder is taken, or the result computes something else.
    """
    opts = ["MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", args.device, *args.opts]
    cfg = read_config(args.config_file, opts)
    weights_file = find_weights(cfg)
    if args.kind == "trainable":
        export_trainable(cfg, weights_file, args.output, args.dtype)
        return {}
    cfg, model = load(args.config_file, opts)
    if args.kind == "bases":
        export_bases(model, args.output, args.dtype)
        return {}
    before = {} if args.no_check else model_outputs(cfg, model)
    export_merged(cfg, model, weights_file, args.output, args.dtype)
    if args.no_check:
        return {}
    del model
    gc.collect()
    own = ["MODEL.WEIGHTS", str(args.output), "MODEL.DEVICE", args.device]
    after = model_outputs(*load(str(args.output / "config.yaml"), own))
    found = deviations(before, after)
    limit = TOLERANCE[args.dtype or cfg.MODEL.LMM.DTYPE]
    # Not `>`, which no NaN is.
    if not all(value <= limit for value in found.values()):
        worst = max(found, key=found.__getitem__)
        raise ValueError(
            f"{args.output} is written, but its {worst} differ by {found[worst]:.2g} of their "
            f"range (allowed: {limit:g}): do not use it."
        )
    return found


def export_any(args: argparse.Namespace) -> dict[str, float]:
    """Do `export`, also from weights that DeepSpeed's own script has put together."""
    folder = Path(args.weights)
    refuse_shards(folder)
    if not is_consolidated(folder):
        return export(args)
    parent = args.output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent) as place:
        model = build_model(read_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts]))
        args.weights = str(Path(place) / "model.safetensors")
        consolidated_to_safetensors(model, folder, Path(args.weights))
        del model
        return export(args)


def export_and_report(args: argparse.Namespace) -> None:
    """Export, and say what was written and how well it agrees."""
    logging.getLogger("rose_d2").setLevel(logging.WARNING)
    found = export_any(args)
    for path in sorted(p for p in args.output.rglob("*") if p.is_file()):
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {path.relative_to(args.output)}")
    for name, deviation in found.items():
        print(f"same {name} after loading it again, up to {deviation:.1e} of their range")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(export_and_report, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
