"""What values a config may have: the one table of every key that has a range.

`check_ranges` refuses a value outside it before any part of the model is built. What depends on
several keys, or on what is installed, is checked where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from detectron2.config import CfgNode

# Pillow itself refuses to decode more.
_PILLOW_PIXELS = 178_956_970
# No side, number or count of a real model or run is beyond.
_MANY = 10**9


@dataclass(frozen=True)
class Range:
    """The numbers that a key may have; of a list, each of its numbers.

    Attributes:
        least: the smallest one.
        most: the largest one.
        open_below: `least` itself is not allowed.
        numbers: how many a list has; None for any.
    """

    least: float = 0
    most: float = _MANY
    open_below: bool = False
    numbers: int | None = None

    def refusal(self, value: Any) -> str:
        """What is allowed instead of this value; "" where it is allowed."""
        values = value if isinstance(value, list | tuple) else [value]
        if len(values) == (len(values) if self.numbers is None else self.numbers) and all(
            map(self._holds, values)
        ):
            return ""
        count = "" if self.numbers is None else f"{self.numbers} numbers "
        low = f"above {self.least:g}" if self.open_below else f"from {self.least:g}"
        return f"{count}{low} to {self.most:g}" if self.most < _MANY else f"{count}{low}"

    def _holds(self, value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        above = value > self.least if self.open_below else value >= self.least
        return above and value <= self.most


@dataclass(frozen=True)
class Choice:
    """The words or numbers that a key may have."""

    values: tuple[Any, ...]

    def refusal(self, value: Any) -> str:
        """What is allowed instead of this value; "" where it is allowed."""
        known = value in self.values and not isinstance(value, bool)
        return "" if known else "one of " + ", ".join(map(repr, self.values))


_COUNT, _NUMBER, _POSITIVE = Range(1), Range(0), Range(0, open_below=True)
_SHARE = Range(0, 1)
_SHARES = Range(0, 1, numbers=2)
RANGES: dict[str, Range | Choice] = {
    "MODEL.LMM.IMAGE_SIZE": Range(1, 10_000),
    "MODEL.LMM.PATCH_SIZE": Range(1, 10_000),
    "MODEL.LMM.PIXEL_MEAN": Range(-_MANY, numbers=3),
    "MODEL.LMM.PIXEL_STD": Range(0, open_below=True, numbers=3),
    "MODEL.LMM.PROMPT_ATTENTION": Choice(("bidirectional", "causal")),
    "MODEL.LMM.DTYPE": Choice(("float32", "bfloat16")),
    "MODEL.LMM.ATTENTION": Choice(("sdpa", "eager", "flash_attention_2")),
    "MODEL.LMM.QUANTIZE": Choice(("none", "int8", "nf4")),
    "MODEL.LORA.RANK": Range(1, 10_000),
    "MODEL.LORA.ALPHA": _POSITIVE,
    "MODEL.LORA.DROPOUT": Range(0, 0.99),
    "MODEL.SUPER_PATCH.WINDOW": Range(1, 1000),
    "MODEL.SUPER_PATCH.SCALE_BOUNDS": Range(0, numbers=2),
    "MODEL.PATCH_ANALYZER.HIDDEN_DIM": Range(1, 10**6),
    "MODEL.PATCH_ANALYZER.SIGLIP_DIM": Range(1, 10**6),
    "MODEL.PATCH_ANALYZER.ROLE_CONDITIONING": Choice(("embedding", "separate_heads", "none")),
    "MODEL.MASK_HEAD.SAM_ARCH": Choice(("vit_h", "vit_l", "vit_b", "tiny")),
    "MODEL.MASK_HEAD.IMAGE_SIZE": Range(16, 10_000),
    "MODEL.MASK_HEAD.PIXEL_MEAN": Range(-_MANY, numbers=3),
    "MODEL.MASK_HEAD.PIXEL_STD": Range(0, open_below=True, numbers=3),
    "MODEL.MASK_HEAD.REGION_PROMPT": Choice(("none", "mask", "box", "mask_box")),
    "MODEL.CATEGORY_DECODER.MAX_TOKENS": Range(1, 1000),
    "MODEL.REFINEMENT.PROMPT": Choice(("concat", "mask_overlay", "mask_box_overlay")),
    "MODEL.ROSE.SEGS_PER_TARGET": Range(1, 1000),
    "MODEL.ROSE.MAX_PAIRS": _COUNT,
    "MODEL.ROSE.NEGATIVES_*": _NUMBER,
    "MODEL.ROSE.SIGLIP_TEMPERATURE": _POSITIVE,
    "MODEL.ROSE.MAX_COUNTED_NAMES": _COUNT,
    "MODEL.ROSE.LOSS_WEIGHT.*": _NUMBER,
    "DATASETS.TRAIN_WEIGHTS": _NUMBER,
    "DATASETS.TASK_WEIGHTS.*": _NUMBER,
    "DATALOADER.NUM_WORKERS": Range(0, 1000),
    "INPUT.CANDIDATE_PROB": _SHARE,
    "INPUT.CANDIDATE_MAX_DISTRACTORS": Range(-1),
    "INPUT.FLIP_PROB": _SHARE,
    "INPUT.MAX_PIXELS": Range(1, _PILLOW_PIXELS),
    "INPUT.REGION_MASK_PROB": _SHARE,
    "INPUT.REFINEMENT.SITUATION_PROBS": Range(0, 1, numbers=3),
    "INPUT.REFINEMENT.HOLES_PROB": _SHARE,
    "INPUT.REFINEMENT.HOLES_IOU": _SHARES,
    "INPUT.REFINEMENT.SHAPE_IOU": _SHARES,
    "INPUT.REFINEMENT.OTHER_OBJECT_PROB": _SHARE,
    "INPUT.REFINEMENT.TARGET_BOX_PROB": _SHARE,
    "INPUT.REFINEMENT.BOX_JITTER": _SHARE,
    "INPUT.REFINEMENT.MIN_PIXELS": _COUNT,
    "SOLVER.ENGINE": Choice(("torch", "deepspeed")),
    "SOLVER.DEEPSPEED.ZERO_STAGE": Choice((1, 2, 3)),
    "SOLVER.BASE_LR": Range(0, math.inf),
    "SOLVER.WEIGHT_DECAY": _NUMBER,
    "SOLVER.LR_MULTIPLIER.*": _NUMBER,
    # Ours is always a linear warm-up and decay: detectron2's default is passed over.
    "SOLVER.LR_SCHEDULER_NAME": Choice(("WarmupMultiStepLR", "WarmupDecayLR")),
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.WARMUP_ITERS": _NUMBER,
    "SOLVER.IMS_PER_BATCH": Range(1, 10**6),
    "SOLVER.ACCUMULATION_STEPS": Range(1, 10**6),
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.CHECKPOINT_KEEP": _NUMBER,
    "SOLVER.LOG_PERIOD": _COUNT,
    "SOLVER.MAX_SKIPPED_STEPS": _NUMBER,
    "SOLVER.WATCHDOG_SECONDS": _NUMBER,
    "SOLVER.DEVICE_PEAK_TFLOPS": Range(-1),
    "SOLVER.AMP.DTYPE": Choice(("bfloat16", "float16")),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "TEST.EVAL_PERIOD": _NUMBER,
    "TEST.DETECTIONS_PER_IMAGE": _COUNT,
    "TEST.IMS_PER_BATCH": Range(1, 10**6),
    "TEST.MAX_RESPONSE_TOKENS": Range(1, 10**6),
    "TEST.NUM_SAMPLES": _NUMBER,
    "TEST.TOP_K": _COUNT,
    "TEST.TOP_K_STUFF": _NUMBER,
    "TEST.SCORE_THRESH": _SHARE,
    "TEST.NMS.THRESH": _SHARE,
    "TEST.NMS.LONGEST_SIDE": Range(1, 100_000),
    "TEST.SEMANTIC.NON_OBJECT_SCORE": _SHARE,
    "TEST.SEMANTIC.MERGE": Choice(("max", "sum")),
    "TEST.PANOPTIC.SCORE_THRESH": _SHARE,
    "TEST.PANOPTIC.OVERLAP_THRESH": _SHARE,
    "TEST.REFERRING.PROTOCOL": Choice(("per_sentence", "per_ref")),
    "TEST.VOCABULARY.SIMILARITY": Choice(("", "name", "predicted")),
    "TEST.VOCABULARY.SIMILARITY_THRESH": Range(-1, 1),
    "TEST.CANDIDATES": Choice(("", "prompt", "decode", "both")),
    "TEST.OPEN_METRICS": Choice(("", "path", "wup")),
    "TEST.REFINEMENT.ROUNDS": Range(1, 1000),
    "TEST.REFINEMENT.BOX": Choice(("target", "prior")),
    "TEST.REFINEMENT.CHANGE_MARGIN": _SHARE,
    "TEST.REFINEMENT.WORST_CLASSES": _COUNT,
    "TEST.REFINEMENT.RECALL_THRESH": _SHARE,
    "TEST.REFINEMENT.CONFUSION_SHARE": _SHARE,
    "TEST.REFINEMENT.MAX_INSTANCES": _COUNT,
    "TEST.REFINEMENT.IOU_THRESH": _SHARE,
    # Negative: drawn anew at each start. NumPy takes no larger ones; every rank adds its number.
    "SEED": Range(-_MANY, 2**32 - 2**16),
}
"""By full key; a * stands for any name. No other key with numbers is bounded."""


def check_ranges(cfg: CfgNode) -> None:
    """Refuse what no run can mean: numbers out of range, NaN, infinity, unknown words.

    Args:
        cfg: the full config.

    Raises:
        ValueError: a value is not allowed; names key, value and what is.
    """
    for key, value in _leaves(cfg):
        allowed = next((RANGES[name] for name in _names(key) if name in RANGES), None)
        refusal = allowed.refusal(value) if allowed is not None else ""
        if not refusal and not _is_finite(value):
            refusal = "a finite number"
        if refusal:
            raise ValueError(f"{key} is {value!r}; allowed is {refusal}.")


def _names(key: str) -> list[str]:
    """The entries of the table that speak of a key."""
    return [key, *(name for name in RANGES if "*" in name and fnmatchcase(key, name))]


def _is_finite(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return all(math.isfinite(v) for v in values if isinstance(v, float))


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
