r"""Draw refinement samples and region prompts of a dataset, as training would see them.

    python tools/show_refinement.py --config-file configs/rose_tiny.yaml \
        --dataset clipart_panoptic_val --num 14 --output output/refinement.png

One row a sample: the image with the box from the instruction, the true mask with its name, the
prior mask (kept pixels white, missing ones red, extra ones blue) with its IoU, and the instruction
below. The samples go round the three situations, both corruptions and the region prompts.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

import rose_d2  # noqa: F401  (registers the datasets)
from rose_d2.command_line import add_config_arguments, make_parser, run_main
from rose_d2.config.read import read_config
from rose_d2.data.build import load_dataset_dicts
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.mixture import DatasetView
from rose_d2.layers.masks import pairwise_mask_iou
from rose_d2.structures.segments import BOX_SCALE

CELL, GAP, LINE, FONT_SIZE = 300, 10, 19, 15
KEPT, MISSING, EXTRA, TRUE = (255, 255, 255), (225, 40, 40), (40, 110, 240), (230, 30, 190)
INK, PAPER, BOX_INK = (40, 40, 40), (255, 255, 255), (255, 210, 0)


@dataclass(frozen=True)
class Kind:
    """One kind of sample: its title, its task and the INPUT keys that make sure of it."""

    title: str
    task: str
    keys: dict[str, Any]


def _refinement(title: str, situation: int, holes: float) -> Kind:
    probs = [float(index == situation) for index in range(3)]
    keys = {"REFINEMENT.SITUATION_PROBS": probs, "REFINEMENT.HOLES_PROB": holes}
    return Kind(title, "refinement", keys)


KINDS = (
    _refinement("mask: holes and patches", 0, 1.0),
    _refinement("mask: shrunk or stretched", 0, 0.0),
    _refinement("category: holes and patches", 1, 1.0),
    _refinement("category: shrunk or stretched", 1, 0.0),
    _refinement("missed", 2, 1.0),
    Kind("region as a mask", "region", {"REGION_MASK_PROB": 1.0}),
    Kind("region as a box", "region", {"REGION_MASK_PROB": 0.0}),
)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--dataset", default="clipart_panoptic_val", help="a registered dataset")
    parser.add_argument("--num", type=int, default=2 * len(KINDS), help="samples to draw")
    parser.add_argument("--columns", type=int, default=2, help="samples side by side")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other samples")
    parser.add_argument("--output", type=Path, required=True, help="picture to write, .png")
    args = parser.parse_args(arguments)
    if args.num < 1 or args.columns < 1:
        parser.error("--num and --columns must be at least 1")
    return args


def make_samples(cfg: CfgNode, dataset: str, num: int, seed: int) -> list[tuple[Kind, dict]]:
    """Map `num` images of a dataset, evenly spread over it, one kind after the other.

    Args:
        cfg: the full config.
        dataset: a registered name.
        num: how many samples.
        seed: of all randomness.

    Raises:
        ValueError: the dataset is unknown or has no images.
    """
    view = DatasetView.parse(f"{dataset}@refinement")
    records = load_dataset_dicts(view.dataset_name, filter_empty=False)
    if not records:
        raise ValueError(f"{dataset!r} has no images; choose another dataset.")
    mappers = [_mapper(cfg, kind) for kind in KINDS]
    samples = []
    for index in range(num):
        kind = KINDS[index % len(KINDS)]
        record = records[index * len(records) // num] | {"task": kind.task}
        rng = np.random.default_rng([seed, index])
        samples.append((kind, mappers[index % len(KINDS)](record, rng)))
    return samples


def _mapper(cfg: CfgNode, kind: Kind) -> RoseDatasetMapper:
    special = cfg.clone()
    special.defrost()
    for key, value in kind.keys.items():
        special.merge_from_list([f"INPUT.{key}", value])
    return RoseDatasetMapper(special, is_train=True)


def draw_sample(kind: Kind, item: dict[str, Any]) -> Image.Image:
    """Three panels and the texts of a sample.

    Args:
        kind: what was asked for; an image without a usable region shows no mask.
        item: what the mapper made of it.
    """
    image = item["image"].permute(1, 2, 0).numpy()
    masks = item["instances"].gt_masks.tensor
    prior = item["prior_mask"][0].bool().numpy()
    true = masks[0].numpy() if len(masks) else np.zeros_like(prior)
    name = item["instances"].gt_category_names[0] if len(masks) else "nothing"
    iou = pairwise_mask_iou(masks, item["prior_mask"].bool()).max().item() if len(masks) else 0.0
    titles = (
        kind.title,
        f"true: {name or '(no name)'}",
        f"prior: IoU {iou:.2f}" if prior.any() else "no prior",
    )
    panels = (
        _with_box(_panel(image, []), item["conversation"].instruction),
        _panel(image, [(true, TRUE)]),
        _panel(image // 3, [(prior & true, KEPT), (true & ~prior & prior.any(), MISSING),
                            (prior & ~true, EXTRA)]),
    )  # fmt: skip
    texts = [*_wrapped(item["conversation"].instruction)]
    texts.append(f"-> {item['conversation'].response}")
    width = 3 * CELL + 2 * GAP
    drawn = Image.new("RGB", (width, LINE + CELL + LINE * len(texts) + GAP), PAPER)
    pen = ImageDraw.Draw(drawn)
    for column, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        left = column * (CELL + GAP)
        pen.text((left, 0), title, INK, _font())
        drawn.paste(panel, (left, LINE))
    for row, text in enumerate(texts):
        pen.text((0, LINE + CELL + 3 + LINE * row), text, INK, _font())
    return drawn


def draw_sheet(samples: list[tuple[Kind, dict]], columns: int) -> Image.Image:
    """All samples, row by row."""
    drawn = [draw_sample(*sample) for sample in samples]
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    heights = [max(sample.height for sample in row) + GAP for row in rows]
    width = GAP + max(sum(sample.width + 3 * GAP for sample in row) for row in rows)
    sheet = Image.new("RGB", (width, GAP + sum(heights)), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, sample in enumerate(row):
            sheet.paste(sample, (GAP + column * (sample.width + 3 * GAP), top))
        top += height
    return sheet


def _panel(image: np.ndarray, tints: list[tuple[np.ndarray, tuple[int, int, int]]]) -> Image.Image:
    canvas = image.astype(np.float32)
    for mask, colour in tints:
        canvas[mask] = 0.35 * canvas[mask] + 0.65 * np.asarray(colour)
    return Image.fromarray(canvas.astype(np.uint8)).resize((CELL, CELL), Image.Resampling.NEAREST)


def _with_box(panel: Image.Image, instruction: str) -> Image.Image:
    """Draw the box an instruction speaks of, read from its words."""
    found = re.search(r"\[(\d+), (\d+), (\d+), (\d+)\]", instruction)
    if found:
        edges = [int(edge) * (CELL - 1) / BOX_SCALE for edge in found.groups()]
        ImageDraw.Draw(panel).rectangle(edges, outline=BOX_INK, width=2)
    return panel


def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), FONT_SIZE)


def _wrapped(text: str) -> list[str]:
    """Lines that fit below the panels."""
    font, lines = _font(), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= 3 * CELL + 2 * GAP or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def show(args: argparse.Namespace) -> None:
    """Draw the sheet and say where it is."""
    cfg = read_config(args.config_file, args.opts)
    sheet = draw_sheet(make_samples(cfg, args.dataset, args.num, args.seed), args.columns)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.output)
    print(f"{args.num} samples of {args.dataset} are in {args.output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(show, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
