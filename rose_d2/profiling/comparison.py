"""ROSE side by side with what else draws masks or writes names, on the same weights and inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from torch import Tensor

from rose_d2.evaluation.object_counts import counted_passes
from rose_d2.modeling.backbone.lmm import LMMBackbone
from rose_d2.modeling.category_decoder import CategoryDecoder, Writing
from rose_d2.modeling.frameworks import StackWriter
from rose_d2.modeling.mask_head import SAMMaskHead
from rose_d2.modeling.meta_arch.rose import ROSE
from rose_d2.predictor.predictor import RosePredictor
from rose_d2.profiling.inputs import synthetic_inputs, without_downloads
from rose_d2.prompts.conversation import EncodedPrompt
from rose_d2.prompts.instructions import seg_response

# What all objects of a comparison are called, in turn.
_NAMES = ("dog", "red car", "traffic light", "tree", "person", "dining table", "cat", "bicycle")


@dataclass(frozen=True)
class Comparison:
    """Two ways to the same, run in turn.

    Attributes:
        title: what is compared.
        ours: what our side is.
        theirs: what the other side is.
        our_seconds: of every run.
        their_seconds: of every run, in the same order.
        our_passes: of the language model, one behind the other; None where nobody counts.
        their_passes: likewise.
    """

    title: str
    ours: str
    theirs: str
    our_seconds: list[float]
    their_seconds: list[float]
    our_passes: int | None = None
    their_passes: int | None = None

    @property
    def ratios(self) -> list[float]:
        """How many times our time the other side takes, run by run."""
        pairs = zip(self.our_seconds, self.their_seconds, strict=True)
        return [theirs / ours for ours, theirs in pairs]

    def report(self) -> str:
        """A few lines for people."""
        lines = [self.title]
        for name, seconds, passes in (
            (self.ours, self.our_seconds, self.our_passes),
            (self.theirs, self.their_seconds, self.their_passes),
        ):
            counted = "" if passes is None else f", {passes} passes of the language model"
            lines.append(f"    {1000 * statistics.median(seconds):10.1f} ms  {name}{counted}")
        ratios = self.ratios
        lines.append(
            f"    {statistics.median(ratios):10.1f} times as long ({min(ratios):.1f} to "
            f"{max(ratios):.1f} in {len(ratios)} pairs)"
        )
        return "\n".join(lines)


@torch.no_grad()
def compare_with_stack(cfg: CfgNode, num_objects: int, num_pairs: int) -> Comparison:
    """A whole answer about N objects: by patches, and as a stack of names and <SEG> (Table 3).

    Both draw and name N objects; what the names are is given, since random weights know none.

    Args:
        cfg: the full config; its checkpoints are not read, and weights are random.
        num_objects: N.
        num_pairs: measured runs of both, after one to warm up.
    """
    names = [_NAMES[number % len(_NAMES)] for number in range(num_objects)]
    cfg = without_downloads(cfg)
    cfg.TEST.TOP_K, cfg.TEST.SCORE_THRESH, cfg.TEST.NMS.THRESH = num_objects, 0.0, 1.0
    cfg.TEST.TOP_K_STUFF = 0
    patches = _random_model(cfg)
    stack_cfg = cfg.clone()
    stack_cfg.MODEL.ROSE.SEGMENT_UNIT, stack_cfg.MODEL.ROSE.CLASSIFY_UNIT = "seg_stack", "along_seg"
    stack_cfg.MODEL.SUPER_PATCH.ENABLED = False
    stack_cfg.MODEL.MASK_HEAD.POSITION_PROMPT = False
    stack = _random_model(stack_cfg)
    stack.writer = _ScriptedWriter(stack.backbone, seg_response(names))
    (item,) = synthetic_inputs(cfg, 1, training=False)
    item = {**item, "dataset_name": None}
    by_patches = {**item, "candidates": sorted(set(names))}

    def answer() -> None:
        patches([by_patches])

    def stacked() -> None:
        stack([item])

    with counted_passes(patches.backbone) as our_passes:
        answer()
    with counted_passes(stack.backbone) as their_passes:
        stacked()
    return Comparison(
        f"{num_objects} objects of an image, drawn and named",
        "by patches",
        "as a stack",
        *_alternate(answer, stacked, num_pairs),
        len(our_passes),
        len(their_passes),
    )


@torch.no_grad()
def compare_with_sam(predictor: RosePredictor, image: np.ndarray, num_pairs: int) -> Comparison:
    """Everything in an image: ROSE with names, and segment-anything's own generator without.

    Args:
        predictor: of a model with a `SAMMaskHead`, whose weights the generator takes.
        image: uint8 (H, W, 3), BGR.
        num_pairs: measured runs of both, after one to warm up.
    """
    generator = SamAutomaticMaskGenerator(as_sam(predictor.model.mask_head))
    rgb = np.ascontiguousarray(image[:, :, ::-1])

    def answer() -> None:
        predictor(image)

    def generate() -> None:
        generator.generate(rgb)

    answer(), generate()
    return Comparison(
        f"everything in an image of {image.shape[1]} x {image.shape[0]}",
        "ROSE, with names",
        "SamAutomaticMaskGenerator, same weights, no names",
        *_alternate(answer, generate, num_pairs),
    )


@torch.no_grad()
def compare_with_generate(model: ROSE, num_names: int, num_pairs: int) -> Comparison:
    """Names of K candidates: our decoder, and `generate` of transformers on the same prompts.

    Args:
        model: in evaluation mode.
        num_names: K.
        num_pairs: measured runs of both, after one to warm up.

    Raises:
        ValueError: the two do not write the same names.
    """
    decoder = model.inference.category_decoder
    torch.manual_seed(0)
    embeddings = torch.randn(num_names, model.backbone.hidden_size, device=model.device)
    names = [decoder.generate(embeddings).names, generate_names(decoder, embeddings)]
    if list(names[0]) != names[1]:
        raise ValueError("Our decoder and transformers' generate write different names.")
    return Comparison(
        f"{num_names} names from embeddings",
        "our decoder",
        "transformers' generate",
        *_alternate(
            lambda: decoder.generate(embeddings),
            lambda: generate_names(decoder, embeddings),
            num_pairs,
        ),
    )


def as_sam(head: SAMMaskHead) -> Sam:
    """The mask head's parts as segment-anything's own model."""
    sam = Sam(
        head.image_encoder,
        head.prompt_encoder,
        head.mask_decoder,
        head.pixel_mean.flatten().tolist(),
        head.pixel_std.flatten().tolist(),
    )
    return sam.to(head.pixel_mean.device).eval()


def generate_names(decoder: CategoryDecoder, embeddings: Tensor) -> list[str]:
    """What transformers' greedy `generate` writes behind the decoder's prompts.

    Args:
        decoder: of the model.
        embeddings: (K, D).
    """
    prompts = decoder.prompts(embeddings)
    written = decoder.lmm.model.generate(
        inputs_embeds=prompts,
        attention_mask=torch.ones(prompts.shape[:2], dtype=torch.long, device=prompts.device),
        max_new_tokens=decoder.max_tokens,
        do_sample=False,
        eos_token_id=list(decoder.stop_tokens),
        pad_token_id=decoder.stop_tokens[1],
    )
    return list(decoder.spell(written))


class _ScriptedWriter(StackWriter):
    """Writes a given response, and computes what writing it freely would."""

    def __init__(self, lmm: LMMBackbone, response: str) -> None:
        ids = lmm.tokenizer.encode(response, add_special_tokens=False)
        self._tokens = [*ids, lmm.tokenizer.eos_token_id]
        super().__init__(lmm, len(self._tokens))

    def begin(self, image: Tensor, prior_mask: Tensor, prompt: EncodedPrompt) -> Writing:
        writing = super().begin(image, prior_mask, prompt)
        script, choose = iter(self._tokens), writing.choose
        writing.choose = lambda: (next(script), choose()[1])  # type: ignore[method-assign]
        return writing


def _random_model(cfg: CfgNode) -> ROSE:
    torch.manual_seed(0)
    return build_model(cfg).eval()


def _alternate(
    ours: Callable[[], object], theirs: Callable[[], object], num_pairs: int
) -> tuple[list[float], list[float]]:
    """Seconds of both sides, which take turns, so that other load meets both."""
    seconds = [(_seconds(ours), _seconds(theirs)) for _ in range(num_pairs)]
    return [pair[0] for pair in seconds], [pair[1] for pair in seconds]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
