"""ROSE: every image patch is a candidate, SAM draws its mask, the language model names it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn

from rose_d2.layers.masks import masks_to_boxes
from rose_d2.modeling.backbone.lmm import LMMBackbone, LMMOutput
from rose_d2.modeling.category_decoder import CategoryDecoder, DecodedNames, ResponseDecoder
from rose_d2.modeling.frameworks import (
    ROSE_FRAMEWORK,
    Framework,
    RegionWriter,
    StackWriter,
    build_proposer,
    build_writer,
)
from rose_d2.modeling.inference import Inference
from rose_d2.modeling.mask_head import build_mask_head
from rose_d2.modeling.stock_inputs import StockInputs, check_training_inputs
from rose_d2.modeling.supervision import Supervisor
from rose_d2.prompts.conversation import EncodedPrompt, encode_image_prompt
from rose_d2.prompts.instructions import add_up_counts
from rose_d2.structures.patches import ImageFeatures, QueryProposals, stack_features
from rose_d2.structures.segments import BOX_SCALE
from rose_d2.vocabulary.text_embeddings import TextEmbeddingBank

PROMPT_FORMS = ("concat", "mask_overlay", "mask_box_overlay")


@META_ARCH_REGISTRY.register()
class ROSE(nn.Module):
    """Open-set dense segmentation with a patch-wise large multimodal model (paper figure 2)."""

    @configurable
    def __init__(
        self,
        *,
        backbone: LMMBackbone,
        patch_analyzer: nn.Module,
        mask_head: nn.Module,
        supervisor: Supervisor,
        inference: Inference,
        framework: Framework = ROSE_FRAMEWORK,
        writer: StackWriter | RegionWriter | None = None,
        response_decoder: ResponseDecoder | None,
        refinement_prompt: RefinementPrompt,
        image_first: bool,
        stock_inputs: StockInputs,
        trainable_parts: dict[str, bool],
        bases: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            backbone: the LMM.
            patch_analyzer: objectness and embeddings of patches.
            mask_head: masks from embeddings.
            supervisor: losses from proposals and ground truth. Like `inference` it uses the modules
                above, but is none itself: their weights are in the state dict once.
            inference: outputs from proposals.
            framework: what draws masks and where names come from.
            writer: writes the names where they stand in the response.
            response_decoder: writes the text response at inference, or None.
            refinement_prompt: how a prior mask is shown to the LMM.
            image_first: the image before the instruction in every prompt.
            stock_inputs: completes inputs that come without a question.
            trainable_parts: which parts train, by part name; LoRA always does.
            bases: see `base_revisions`.
        """
        super().__init__()
        self.backbone = backbone
        self.patch_analyzer = patch_analyzer
        self.mask_head = mask_head
        self.supervisor = supervisor
        self.inference = inference
        self.framework = framework
        self.writer = writer
        self.response_decoder = response_decoder
        self.refinement_prompt = refinement_prompt
        self.image_first = image_first
        self.stock_inputs = stock_inputs
        self._bases = dict(bases or {})
        self._freeze(trainable_parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        framework = Framework.from_config(cfg)
        backbone = build_backbone(cfg)
        if framework.special_tokens:
            backbone.add_tokens(framework.special_tokens)
        mask_head = build_mask_head(cfg)
        heads = {
            "patch_analyzer": build_proposer(cfg, framework, backbone, mask_head.prompt_dim),
            "mask_head": mask_head,
        }
        shared = {
            **heads,
            "grid": backbone.grid,
            "category_decoder": CategoryDecoder(backbone, cfg.MODEL.CATEGORY_DECODER.MAX_TOKENS),
            "text_embeddings": TextEmbeddingBank.from_config(cfg),
        }
        return {
            "backbone": backbone,
            **heads,
            "framework": framework,
            "writer": build_writer(cfg, framework, backbone),
            "supervisor": Supervisor.from_config(cfg, framework=framework, **shared),
            "inference": Inference.from_config(cfg, **shared),
            "response_decoder": (
                ResponseDecoder(backbone, cfg.TEST.MAX_RESPONSE_TOKENS)
                if cfg.TEST.GENERATE_RESPONSE
                else None
            ),
            "refinement_prompt": RefinementPrompt(
                cfg.MODEL.REFINEMENT.PROMPT, box_as_mask=cfg.MODEL.REFINEMENT.BOX_AS_MASK
            ),
            "image_first": cfg.MODEL.LMM.IMAGE_FIRST,
            "stock_inputs": StockInputs.from_config(cfg),
            "trainable_parts": {k.lower(): v for k, v in cfg.MODEL.TRAINABLE.items()},
            "bases": _pretrained_bases(cfg, backbone),
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.patch_analyzer.parameters()).device

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses in training, predictions in evaluation.

        Args:
            batched_inputs: B dicts of `RoseDatasetMapper`:

                * image: uint8 (3, I, I), RGB, the LMM's square view;
                * sam_image: uint8 (3, h, w), RGB, SAM's view before padding;
                * prior_mask: float (1, I, I), 0 or 1 (optional), see `RefinementPrompt`;
                * conversation, task, height, width (the original size); where they are missing in
                  evaluation, INPUT.DEFAULT_TASK is asked, and both views are made of `image`;
                * dataset_name: fixes the classes (optional at inference: names are open without);
                * candidates: the only names that decoding may spell; dense candidates that fit none
                  of them drop out (optional, inference). Listing them to the model as well is
                  the conversation's business;
                * full_prior: bool (H, W), the prior mask at the original size, whose pixels may
                  stay (TEST.REFINEMENT.CHANGE_MARGIN; optional, inference);
                * named_box: (x1, y1, x2, y2) in 0-999, the box the conversation names (optional);
                * answer_box: such a box, where the answering patch must lie (tasks with one answer;
                  optional, inference);
                * features: what `encode` made of image, sam_image and prior_mask, or
                  `with_sam_features` of sam_image; used if every item has them (optional,
                  inference);
                * instances, negative_points, ignore_mask: ground truth (training).

        Returns:
            In training, scalars by loss name. Otherwise B dicts at the original size:

            * "open_instances": all that was found, whatever its name: Instances with pred_masks
              (`LogitMasks`, bool (N, H, W) where a tensor is asked for), pred_boxes, scores,
              pred_classes (at the level TEST.VOCABULARY.LEVEL; -1: the dataset has no class of this
              name), pred_category_names, name_scores (probabilities, the geometric mean over a
              name's tokens), pred_roles, pred_patches; for dense tasks with a vocabulary also
              mapped_classes (by any rule) and mapping_rules (indices into MAPPING_RULES);
            * "instances": those of them that are things of the dataset, as detectron2's evaluators
              and Visualizer want them; all of them without a dataset;
            * "metadata": what the classes are, for detectron2's Visualizer. Those of the dataset;
              without one thing_classes and stuff_classes are the names in this image (the
              candidates first) and pred_classes and category_id count them;
            * "sem_seg": (C, H, W) scores (`SemanticScores`, a float tensor where one is asked for),
              and "sem_seg_labels": int16 (H, W), C where "no object", whose score is
              "non_object_score", beats them all (semantic task, with a vocabulary);
            * "panoptic_seg": (id map (H, W), segments_info) (panoptic task);
            * "levels": what counts at each level of name mapping (both tasks, with a
              vocabulary): level -> {"sem_seg_labels": int16 (H, W), C = no object} or
              {"panoptic_seg"}, one dict for consecutive levels that do not differ;
            * "ref_seg" (H, W) bool, "ref_patch", "ref_score" (tasks with one answer; instances
              then have mask_quality and prior_quality, see `DrawnMasks`);
            * "text": the response, if TEST.GENERATE_RESPONSE.
        """
        if self.training:
            check_training_inputs(batched_inputs)
        elif any("conversation" not in item for item in batched_inputs):
            batched_inputs = [self.stock_inputs.complete(item) for item in batched_inputs]
        lmm_output, proposals, sam_features = self.perceive(batched_inputs)
        if self.training:
            return self.supervisor.losses(batched_inputs, lmm_output, proposals, sam_features)
        outputs = self.inference(batched_inputs, proposals, sam_features)
        if self.response_decoder is not None:
            texts = self.response_decoder(*self._lmm_inputs(batched_inputs))
            for output, text in zip(outputs, texts, strict=True):
                output["text"] = add_up_counts(text)
        return outputs

    def perceive(
        self, batched_inputs: list[dict]
    ) -> tuple[LMMOutput | None, QueryProposals, torch.Tensor]:
        """The path that training and inference share (paper section 3.2).

        Args:
            batched_inputs: see `forward`.

        Returns:
            What the LMM says (None where it writes a stack), the candidates of every image, and
            SAM's features (B, E, g, g).
        """
        patches, sam_features = stack_features([item.get("features") for item in batched_inputs])
        asked = self._lmm_inputs(batched_inputs)
        lmm_output = None
        if isinstance(self.writer, StackWriter) and not self.training:
            proposals = self.writer(*asked)
        else:
            lmm_output = self.backbone(*asked, patches)
            proposals = self.patch_analyzer.propose(lmm_output)
            if isinstance(self.writer, RegionWriter):
                proposals.names = partial(self._names_of_regions, asked)
        if sam_features is None:
            sam_features = self.mask_head.encode([item["sam_image"] for item in batched_inputs])
        return lmm_output, proposals, sam_features

    def encode(self, item: dict, known: ImageFeatures | None = None) -> ImageFeatures:
        """Features of one image, to be handed in again as `features` with any words.

        Args:
            item: one of `batched_inputs`, see `forward`. They hold for all items in which
                `RefinementPrompt.region` is the same.
            known: features of the same image under another prior mask; SAM's are taken over.
        """
        images, prior_masks, _ = self._lmm_inputs([item])
        (patches,) = self.backbone.encode_image(images, prior_masks)  # (P, D)
        sam = self.mask_head.encode([item["sam_image"]])[0] if known is None else known.sam
        return ImageFeatures(sam, patches)

    def with_sam_features(self, batched_inputs: list[dict]) -> list[dict]:
        """The same items with SAM's features, for several turns about their images.

        Args:
            batched_inputs: see `forward`.
        """
        sam = self.mask_head.encode([item["sam_image"] for item in batched_inputs])
        return [
            {**item, "features": ImageFeatures(features)}
            for item, features in zip(batched_inputs, sam, strict=True)
        ]

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named parameters by part, trainable or not; what no output depends on is left out."""
        return {
            **self.backbone.parts(),
            "heads": list(self.patch_analyzer.named_parameters()),
            **self.mask_head.parts(),
        }

    def trainable_parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """The parameters that train, by part."""
        parts = {
            name: [(n, p) for n, p in parameters if p.requires_grad]
            for name, parameters in self.parts().items()
        }
        return {name: parameters for name, parameters in parts.items() if parameters}

    def base_revisions(self) -> dict[str, str]:
        """Submodules that came with pretrained weights, and which: name and revision.

        Their frozen parameters are not part of a checkpoint.
        """
        return dict(self._bases)

    def _names_of_regions(self, asked: tuple, index: int, patches: Tensor) -> DecodedNames:
        """Names of patches of image `index`, as the response to what was asked has them."""
        images, priors, prompts = asked
        return self.writer(images[index], priors[index], prompts[index], patches)

    def _lmm_inputs(
        self, batched_inputs: list[dict]
    ) -> tuple[torch.Tensor, torch.Tensor, list[EncodedPrompt]]:
        images = torch.stack([item["image"] for item in batched_inputs]).to(self.device)
        priors = torch.stack([self.refinement_prompt.region(item) for item in batched_inputs])
        grid = self.backbone.grid
        talks = [self.framework.conversation(item, grid) for item in batched_inputs]
        prompts = [
            encode_image_prompt(self.backbone.tokenizer, talk, self.image_first) for talk in talks
        ]
        pixels, priors = self.refinement_prompt(images, priors.to(self.device))
        return pixels, priors, prompts

    def _freeze(self, trainable: dict[str, bool]) -> None:
        """Train what is switched on, and LoRA; freeze everything else, and quantised weights."""
        self.requires_grad_(False)
        for name, parameters in self.parts().items():
            for _, parameter in parameters:
                is_on = name == "lora" or trainable[name]
                parameter.requires_grad_(is_on and parameter.is_floating_point())


def _pretrained_bases(cfg: CfgNode, backbone: LMMBackbone) -> dict[str, str]:
    bases = {}
    if cfg.MODEL.LMM.PRETRAINED:
        revision = getattr(backbone.model.config, "_commit_hash", None) or "local"
        bases["backbone.model"] = f"{cfg.MODEL.LMM.PRETRAINED}@{revision}"
    if cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT:
        bases["mask_head"] = Path(cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT).name
    return bases


@dataclass(frozen=True)
class RefinementPrompt:
    """Brings a prior mask into the language model's input.

    "concat" is the paper's choice (section 3.4): the mask is the fourth input channel. Its two
    alternatives follow FGVP (arXiv 2306.04356): "mask_overlay" blends a colour over the masked
    pixels, "mask_box_overlay" draws the frame of the mask's box besides; the fourth channel is
    then zero, so the prompt is all the model sees of the mask. Colour, opacity and line width are
    ours. SAM's view is never drawn upon.

    Attributes:
        form: MODEL.REFINEMENT.PROMPT, one of `PROMPT_FORMS`.
        box_as_mask: MODEL.REFINEMENT.BOX_AS_MASK.
        colour: RGB in 0..255 of overlay and frame.
        alpha: opacity of the overlay, 0 to 1; the frame is opaque.
        line_width: of the frame, in pixels of the view.

    Raises:
        ValueError: if `form` is unknown.
    """

    form: str = "concat"
    box_as_mask: bool = False
    colour: tuple[int, int, int] = (255, 0, 0)
    alpha: float = 0.5
    line_width: int = 2

    def __post_init__(self) -> None:
        if self.form not in PROMPT_FORMS:
            raise ValueError(
                f"MODEL.REFINEMENT.PROMPT is {self.form!r}; choose one of "
                f"{', '.join(PROMPT_FORMS)}."
            )

    def region(self, item: dict) -> Tensor:
        """What is marked in the view: the prior mask, or the named box where there is none.

        Args:
            item: one of `batched_inputs`.

        Returns:
            float (1, I, I), 0 or 1.
        """
        side = item["image"].shape[-1]
        prior = item.get("prior_mask")
        if prior is not None and prior.any():
            return prior
        marked = torch.zeros(1, side, side, device="cpu")
        if self.box_as_mask and "named_box" in item:
            left, top, right, bottom = (edge * side / BOX_SCALE for edge in item["named_box"])
            marked[:, math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = 1
        return marked

    def __call__(self, images: Tensor, prior_masks: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            images: (B, 3, I, I), RGB in 0..255, uint8 or float.
            prior_masks: float (B, 1, I, I), 0 or 1; all 0 where an image has no prior.

        Returns:
            The pixels (B, 3, I, I), RGB in 0..255 (float with an overlay), and the fourth channel
            (B, 1, I, I).
        """
        if self.form == "concat":
            return images, prior_masks
        covered = prior_masks > 0.5  # (B, 1, I, I)
        colour = torch.tensor(self.colour, dtype=torch.float32, device=images.device).view(3, 1, 1)
        pixels = images.float()
        pixels = torch.where(covered, (1 - self.alpha) * pixels + self.alpha * colour, pixels)
        if self.form == "mask_box_overlay":
            frames = box_frames(covered[:, 0], self.line_width)
            pixels = torch.where(frames[:, None], colour, pixels)
        return pixels, torch.zeros_like(prior_masks)


def box_frames(masks: Tensor, line_width: int) -> Tensor:
    """The frames around the tight boxes of masks.

    A frame lies just outside its box. Where the box comes nearer to the border of the view than
    the line is wide, the line moves inwards, so that all four sides are seen in full width.

    Args:
        masks: bool (B, I, I).
        line_width: in pixels.

    Returns:
        bool (B, I, I); no frame where the mask is empty.
    """
    frames = torch.zeros_like(masks)
    height, width = masks.shape[1:]
    boxes = masks_to_boxes(masks).tensor.long().tolist()
    for frame, (x1, y1, x2, y2) in zip(frames, boxes, strict=True):
        if x1 == x2:
            continue
        left, top = max(0, x1 - line_width), max(0, y1 - line_width)
        right, bottom = min(width, x2 + line_width), min(height, y2 + line_width)
        frame[top:bottom, left:right] = True
        rows = slice(top + line_width, bottom - line_width)
        columns = slice(left + line_width, right - line_width)
        frame[rows, columns] = False
    return frames
