"""ROSE side by side with what else does the same, on the same weights, inputs or answers."""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    SemSegEvaluator,
)
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from torch import Tensor

from rose_d2.data.build import TaskDicts, load_dataset_dicts, load_training_dicts
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.mixture import DatasetView
from rose_d2.evaluation.ground_truth import DatasetGroundTruth
from rose_d2.evaluation.instance import RoseCOCOEvaluator
from rose_d2.evaluation.object_counts import counted_passes
from rose_d2.evaluation.panoptic import RosePanopticEvaluator
from rose_d2.evaluation.semantic import RoseSemSegEvaluator
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


def compare_evaluators(dataset_name: str, num_pairs: int) -> Comparison:
    """AP of masks, PQ or mIoU of a whole dataset: our evaluator, and detectron2's.

    detectron2's use pycocotools and panopticapi. The answers are what is annotated, moved by some
    pixels, with some wrong classes; making them is not measured.

    Args:
        dataset_name: registered dataset of instances, panoptic or semantic segments.
        num_pairs: measured runs of both, which take turns image by image.

    Raises:
        ValueError: the dataset is of another kind, or the two numbers differ.
    """
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    if kind not in _NUMBERS:
        raise ValueError(
            f"{dataset_name} has the evaluator type {kind}; numbers can be compared for datasets "
            f"of {', '.join(_NUMBERS)}."
        )
    group, key = _NUMBERS[kind]
    records = load_dataset_dicts(dataset_name, filter_empty=False)
    seconds: tuple[list[float], list[float]] = ([], [])
    with contextlib.redirect_stdout(io.StringIO()):
        sides = _evaluators(kind, dataset_name)
        for _ in range(num_pairs):
            ours, theirs = _score(sides, records, MadeUpAnswers(dataset_name, kind), seconds)
            if not math.isclose(ours[group][key], theirs[group][key], abs_tol=1e-9):
                raise ValueError(
                    f"{key} of {dataset_name} is {ours[group][key]} here and "
                    f"{theirs[group][key]} by detectron2."
                )
    return Comparison(
        f"{key} of {len(records)} images of {dataset_name}, {ours[group][key]:.2f} by both",
        type(sides[0]).__name__,
        f"{type(sides[1]).__name__} of detectron2",
        *seconds,
    )


# What is compared, by evaluator type: where the results of both evaluators have it.
_NUMBERS = {"coco": ("segm", "AP"), "coco_panoptic_seg": ("panoptic_seg", "PQ")}
_NUMBERS |= {"sem_seg": ("sem_seg", "mIoU")}


def _evaluators(kind: str, dataset_name: str) -> tuple[DatasetEvaluator, DatasetEvaluator]:
    """Ours and detectron2's, which scores with the Python of pycocotools and panopticapi."""
    if kind == "coco":
        options = {"tasks": ("segm",), "distributed": False}
        return (
            RoseCOCOEvaluator(dataset_name, **options, rank_by_name=False),
            COCOEvaluator(dataset_name, **options, use_fast_impl=False),
        )
    if kind == "sem_seg":
        return (
            RoseSemSegEvaluator(dataset_name, distributed=False),
            SemSegEvaluator(dataset_name, False, sem_seg_loading_fn=_read_labels),
        )
    return RosePanopticEvaluator(dataset_name), COCOPanopticEvaluator(dataset_name)


def _read_labels(file_name: str, dtype: Any) -> np.ndarray:
    """detectron2's own reader asks NumPy 2 for what it refuses."""
    with Image.open(file_name) as image:
        return np.array(image, dtype=dtype)


def _score(
    sides: Sequence[DatasetEvaluator],
    records: Sequence[dict],
    answers: MadeUpAnswers,
    seconds: tuple[list[float], list[float]],
) -> list[dict]:
    """Results of all sides; what they took is appended to `seconds`."""
    spent = [0.0, 0.0]
    for side in sides:
        side.reset()
    for record in records:
        output = answers(record)
        for number, side in enumerate(sides):
            spent[number] += _seconds(partial(side.process, [record], [output]))
    results: list[dict] = []
    for number, side in enumerate(sides):
        start = time.perf_counter()
        results.append(side.evaluate())
        seconds[number].append(spent[number] + time.perf_counter() - start)
    return results


class MadeUpAnswers:
    """Answers to any image of a dataset, the same ones for the same images in the same order."""

    def __init__(self, dataset_name: str, kind: str) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            kind: its evaluator type, one of `compare_evaluators`.
        """
        self._metadata = MetadataCatalog.get(dataset_name)
        self._truth = DatasetGroundTruth(dataset_name)
        self._make = {
            "coco": self._instances,
            "coco_panoptic_seg": self._panoptic,
            "sem_seg": self._semantic,
        }[kind]
        self._rng = np.random.default_rng(0)

    def __call__(self, record: dict) -> dict[str, Any]:
        """A model's output for a dataset dict, at the image's size."""
        return self._make(record)

    def _instances(self, record: dict) -> dict[str, Any]:
        """Every object twice, well drawn and badly."""
        truth = self._truth.objects(record)
        masks = torch.cat([_moved(truth.masks, 2), _moved(truth.masks, 9)])
        instances = Instances(masks.shape[1:], pred_masks=masks)
        instances.pred_boxes = BitMasks(masks).get_bounding_boxes()
        instances.scores = torch.from_numpy(self._rng.random(len(masks), dtype=np.float32))
        classes = [self._perhaps(c, self._metadata.thing_classes) for c in 2 * truth.classes]
        instances.pred_classes = torch.tensor(classes, dtype=torch.long)
        return {"instances": instances}

    def _panoptic(self, record: dict) -> dict[str, Any]:
        truth = self._truth.objects(record)
        ids = torch.zeros(truth.masks.shape[1:], dtype=torch.int32)
        for number, mask in enumerate(_moved(truth.masks, 2), start=1):
            ids[mask] = number
        segments = []
        for number, (class_id, is_stuff) in enumerate(
            zip(truth.classes, truth.is_stuff, strict=True), start=1
        ):
            things = [] if is_stuff else self._metadata.thing_classes
            if (ids == number).any():
                category_id = self._perhaps(class_id, things)
                segments.append({"id": number, "isthing": not is_stuff, "category_id": category_id})
        return {"panoptic_seg": (ids, segments)}

    def _semantic(self, record: dict) -> dict[str, Any]:
        """Scores, of which both evaluators have to find the best."""
        labels = _moved(self._truth.labels(record)[None], 2)[0].clamp(min=0)
        names = self._metadata.stuff_classes
        for label in labels.unique().tolist():
            labels[labels == label] = self._perhaps(label, names)
        scores = torch.zeros(len(names), *labels.shape)
        return {"sem_seg": scores.scatter_(0, labels[None], 1.0)}

    def _perhaps(self, class_id: int, names: Sequence[str]) -> int:
        """Now and then another class."""
        is_wrong = bool(names) and self._rng.random() < _SHARE_OF_WRONG_CLASSES
        return int(self._rng.integers(len(names))) if is_wrong else class_id


_SHARE_OF_WRONG_CLASSES = 0.1


def _moved(planes: Tensor, pixels: int) -> Tensor:
    """Planes (N, H, W), down and to the right, around the border."""
    return planes.roll((pixels, pixels), (1, 2))


def compare_mappers(cfg: CfgNode, spec: str, num_pairs: int, num_images: int) -> Comparison:
    """Training samples of a dataset: ours, and those of detectron2's `DatasetMapper`.

    Both read and mirror the image and decode its masks. Ours makes the two views, with masks in
    the language model's, patches and an instruction; detectron2's makes one view of the size of
    SAM's, with masks in it.

    Args:
        cfg: the full config.
        spec: a registered dataset of instances, or name@task.
        num_pairs: measured runs of both.
        num_images: of a run.
    """
    view = DatasetView.parse(spec)
    dicts = TaskDicts(load_training_dicts(cfg, view.dataset_name), view.task)
    samples = [dicts[number % len(dicts)] for number in range(num_images)]
    ours = RoseDatasetMapper(cfg, is_train=True)
    stock = cfg.clone()
    stock.defrost()
    longest = cfg.MODEL.MASK_HEAD.IMAGE_SIZE
    stock.INPUT.MIN_SIZE_TRAIN, stock.INPUT.MAX_SIZE_TRAIN = (longest,), longest
    stock.MODEL.MASK_ON, stock.INPUT.MASK_FORMAT = True, "bitmask"
    theirs = DatasetMapper(stock, is_train=True)
    rng = np.random.default_rng(0)

    def prepare() -> None:
        for sample in samples:
            ours(sample, rng)

    def prepare_theirs() -> None:
        for sample in samples:
            theirs(sample)

    ours(samples[0], rng), theirs(samples[0])
    return Comparison(
        f"{num_images} training samples of {spec}",
        "RoseDatasetMapper, views for both backbones",
        "DatasetMapper of detectron2, one view",
        *_alternate(prepare, prepare_theirs, num_pairs),
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
