"""The training half of ROSE: from proposals and ground truth to weighed loss terms."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch.utils.hooks import RemovableHandle

from rose_d2.layers.losses import (
    dice_loss,
    info_nce_loss,
    objectness_loss,
    patch_ranking_loss,
    sigmoid_bce_mask_loss,
    text_cross_entropy,
)
from rose_d2.layers.masks import paired_mask_iou
from rose_d2.modeling.assignment import (
    NegativeCounts,
    PatchAssigner,
    PatchAssignment,
    pair_weights,
    sample_pairs,
)
from rose_d2.modeling.backbone.lmm import LMMOutput
from rose_d2.modeling.category_decoder import CategoryDecoder
from rose_d2.modeling.frameworks import Framework, TokenAssigner
from rose_d2.modeling.mask_head import DrawnMasks, MaskHead, MaskView, view_size
from rose_d2.modeling.patch_analyzer import PatchAnalyzer, SuperPatchLayout
from rose_d2.prompts.tasks import TASKS
from rose_d2.structures.category_names import CategoryNames
from rose_d2.structures.patches import PatchGrid, PatchPredictions, QueryProposals
from rose_d2.vocabulary.text_embeddings import TextEmbeddingBank
from rose_d2.vocabulary.vocabulary import CategoryVocabulary

LossHook: TypeAlias = Callable[[list[dict], dict[str, torch.Tensor]], None]
# Name of the dummy pair that runs through every module when an image has no target.
NO_TARGET_NAME = "object"
_MASKS_AT_ONCE = 16


class Supervisor:
    """Matches patches with objects and computes every loss term (paper section 3.5).

    Every module runs once per micro-batch whatever the images contain: an image without a target
    contributes one dummy pair of weight 0, so that no rank of a distributed run waits for another.
    """

    def __init__(
        self,
        *,
        assigner: PatchAssigner | TokenAssigner,
        patch_analyzer: PatchAnalyzer,
        mask_head: MaskHead,
        criterion: RoseCriterion,
        category_decoder: CategoryDecoder,
        text_embeddings: TextEmbeddingBank,
        max_pairs: int,
        pairs_per_object: int,
    ) -> None:
        """
        Args:
            assigner: which patches learn what.
            patch_analyzer: embeds these patches.
            mask_head: draws their masks.
            criterion: weighs and averages the terms.
            category_decoder: names from embeddings.
            text_embeddings: targets of the SigLIP head.
            max_pairs: pairs per image that reach the mask, name and SigLIP losses.
            pairs_per_object: and of each object; 0: all.
        """
        self.assigner = assigner
        self.patch_analyzer = patch_analyzer
        self.mask_head = mask_head
        self.criterion = criterion
        self.category_decoder = category_decoder
        self.text_embeddings = text_embeddings
        self.max_pairs = max_pairs
        self.pairs_per_object = pairs_per_object
        self._hooks: dict[int, LossHook] = OrderedDict()
        self._vocabularies: dict[str, tuple[str, ...]] = {}
        self._banks: dict[str, torch.Tensor] = {}

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        *,
        framework: Framework,
        grid: PatchGrid,
        patch_analyzer: PatchAnalyzer,
        mask_head: MaskHead,
        category_decoder: CategoryDecoder,
        text_embeddings: TextEmbeddingBank,
    ) -> Supervisor:
        """Read MODEL.SUPER_PATCH and MODEL.ROSE.

        Args:
            cfg: the full config.
            framework: of Table 3.
            grid: patches of the LMM's view.
            patch_analyzer: see `__init__`, as the other arguments.
            mask_head: see there.
            category_decoder: see there.
            text_embeddings: see there.
        """
        rose, super_patch = cfg.MODEL.ROSE, cfg.MODEL.SUPER_PATCH
        weights = LossWeights(**{name.lower(): value for name, value in rose.LOSS_WEIGHT.items()})
        weights = weights.for_framework(framework)
        negatives = NegativeCounts(
            rose.NEGATIVES_WRONG_ROLE, rose.NEGATIVES_NOT_ASKED, rose.NEGATIVES_RANDOM
        )
        layout = SuperPatchLayout(super_patch.LAYOUT, super_patch.SCALE_BOUNDS)
        assigner: PatchAssigner | TokenAssigner = TokenAssigner(framework, grid)
        if framework.draws_by_patch:
            assigner = PatchAssigner(grid, layout, super_patch.WINDOW, negatives)
        return cls(
            assigner=assigner,
            patch_analyzer=patch_analyzer,
            mask_head=mask_head,
            criterion=RoseCriterion(weights, rose.SIGLIP_TEMPERATURE),
            category_decoder=category_decoder,
            text_embeddings=text_embeddings,
            max_pairs=rose.MAX_PAIRS,
            pairs_per_object=rose.PAIRS_PER_OBJECT,
        )

    def losses(
        self,
        batched_inputs: list[dict],
        lmm_output: LMMOutput,
        proposals: QueryProposals,
        image_embeddings: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Loss terms of a batch, each a mean over its images.

        Args:
            batched_inputs: B dicts with `instances`, `negative_points` and `ignore_mask`.
            lmm_output: of the backbone.
            proposals: of the patch analyzer.
            image_embeddings: (B, E, g, g) of the mask head.
        """
        instances = [item["instances"] for item in batched_inputs]
        assignments = [
            self.assigner(objects, item["negative_points"], item["ignore_mask"])
            for objects, item in zip(instances, batched_inputs, strict=True)
        ]
        self._log_assignment(assignments, instances)
        device = proposals.objectness_logits.device
        pairs = [self._choose_pairs(assignment) for assignment in assignments]
        predictions = [
            self.patch_analyzer.embed(proposals, index, pair.patches.to(device))
            for index, pair in enumerate(pairs)
        ]
        masks = self.mask_head.decode(
            image_embeddings, predictions, [MaskView.of(item) for item in batched_inputs]
        )
        names = self._names(instances, pairs)
        category_losses = self._category_losses(predictions, names)
        supervisions = [
            self._supervise(*image)
            for image in zip(
                batched_inputs, instances, pairs, predictions, masks, names, category_losses,
                strict=True,
            )
        ]  # fmt: skip
        losses = {
            "loss_text": self.criterion.text(
                lmm_output.response_logits,
                lmm_output.response_labels,
                lmm_output.response_images,
                len(batched_inputs),
            ),
            "loss_objectness": self._objectness(proposals, assignments),
            **self.criterion.pairs(supervisions),
        }
        if self.criterion.weights.ranking:
            losses["loss_ranking"] = self._ranking(batched_inputs, proposals, assignments)
        for hook in self._hooks.values():
            hook(batched_inputs, {name: loss.detach() for name, loss in losses.items()})
        return {name: loss.mean() for name, loss in losses.items()}

    def register_loss_hook(self, hook: LossHook) -> RemovableHandle:
        """Let a function see the terms of every image, of which the model returns means only.

        Args:
            hook: called after each batch with its B inputs and each term's values (B,) by image,
                without gradient.
        """
        handle = RemovableHandle(self._hooks)
        self._hooks[handle.id] = hook
        return handle

    def _choose_pairs(self, assignment: PatchAssignment) -> Pairs:
        """The pairs kept; one of weight 0 where there are none."""
        if not len(assignment.patches):
            dummy = assignment.patches.new_zeros(1)
            return Pairs(dummy, dummy, torch.zeros(1, device="cpu"))
        kept = sample_pairs(assignment.objects, self.max_pairs, self.pairs_per_object)
        objects = assignment.objects[kept]
        return Pairs(assignment.patches[kept], objects, pair_weights(objects))

    def _names(self, instances: list[Instances], pairs: list[Pairs]) -> list[CategoryNames]:
        """Name of each pair's object, "" where the annotation has none."""
        return [
            objects.gt_category_names[pair.objects] if len(objects) else CategoryNames([""])
            for objects, pair in zip(instances, pairs, strict=True)
        ]

    def _category_losses(
        self, predictions: list[PatchPredictions], names: list[CategoryNames]
    ) -> tuple[torch.Tensor, ...]:
        """Cross entropy of every pair's name; all names of the batch are decoded together."""
        flat = CategoryNames.cat(names)
        spelled = CategoryNames(name or NO_TARGET_NAME for name in flat)
        embeddings = torch.cat([p.category_embeddings for p in predictions])
        if self.criterion.weights.category:
            losses = self.category_decoder.loss(embeddings, spelled)
        else:
            losses = 0 * embeddings.sum(dim=1)
        is_named = torch.tensor([bool(name) for name in flat], device=losses.device)
        return (losses * is_named).split([len(part) for part in names])

    def _supervise(
        self,
        item: dict,
        instances: Instances,
        pairs: Pairs,
        prediction: PatchPredictions,
        drawn: DrawnMasks,
        names: CategoryNames,
        category_losses: torch.Tensor,
    ) -> PairSupervision:
        device = drawn.logits.device
        targets, valid = self._mask_targets(item, instances, pairs.objects, device)
        bank_names = self._bank_names(item["dataset_name"], names)
        row_of = {name: row for row, name in enumerate(bank_names)}
        rows = [row_of[name or NO_TARGET_NAME] for name in names]
        return PairSupervision(
            mask_logits=drawn.logits,
            mask_targets=targets,
            valid=valid,
            category_losses=category_losses,
            quality_losses=self._quality_losses(item, drawn, instances, pairs.objects),
            siglip_embeddings=prediction.siglip_embeddings,
            siglip_bank=self._bank(item["dataset_name"], bank_names, device),
            siglip_targets=torch.tensor(rows, device=device),
            weights=pairs.weights.to(device),
        )

    def _quality_losses(
        self, item: dict, drawn: DrawnMasks, instances: Instances, objects: torch.Tensor
    ) -> torch.Tensor:
        """Squared errors (M,) of the IoUs that the head predicts (segment-anything's IoU loss).

        Args:
            item: one of `batched_inputs`.
            drawn: M masks.
            instances: the image's objects.
            objects: (M,) long, the object of each mask.
        """
        quality, prior_quality = drawn.quality.float(), drawn.prior_quality.float()
        if not self.criterion.weights.quality:
            return 0 * quality
        if not len(instances):
            return 0 * quality + 0 * prior_quality
        masks = instances.gt_masks.tensor[objects].to(quality.device)  # bool (M, I, I)
        with torch.no_grad():
            answers = self.mask_head.upscale(drawn.logits, view_size(item), masks.shape[-2:])
            ious = paired_mask_iou(answers.tensor, masks)
        errors = (quality - ious) ** 2
        prior = item.get("prior_mask")
        if prior is None or not prior.any():
            return errors + 0 * prior_quality
        return errors + (prior_quality - paired_mask_iou(prior.to(masks.device) > 0.5, masks)) ** 2

    def _mask_targets(
        self, item: dict, instances: Instances, objects: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets of the pairs' objects only: an image may have hundreds, and few are kept."""
        masks = instances.gt_masks.tensor
        if not len(instances):
            masks = masks.new_zeros(1, *instances.image_size)
        kept, row_of_pair = objects.unique(return_inverse=True)
        # In parts: at SAM's size an image's masks would take more memory than all else here.
        parts = [
            self.mask_head.targets(part.to(device), view_size(item))
            for part in masks[kept].split(_MASKS_AT_ONCE)
        ]
        targets = torch.cat([target for target, _ in parts])
        return targets[row_of_pair.to(device)], parts[0][1]

    def _bank(
        self, dataset_name: str, names: tuple[str, ...], device: torch.device
    ) -> torch.Tensor:
        """Text embeddings (C, T) of `_bank_names`; those of a vocabulary stay on the device."""
        known = self._vocabularies[dataset_name]
        if dataset_name not in self._banks:
            self._banks[dataset_name] = self.text_embeddings(known).to(device)
        others = names[len(known) :]
        if not others:
            return self._banks[dataset_name]
        return torch.cat([self._banks[dataset_name], self.text_embeddings(others).to(device)])

    def _bank_names(self, dataset_name: str, names: CategoryNames) -> tuple[str, ...]:
        """The dataset's own vocabulary, equal names merged, and whatever else is named here."""
        if dataset_name not in self._vocabularies:
            self._vocabularies[dataset_name] = trained_names(dataset_name)
        known = self._vocabularies[dataset_name]
        return tuple(dict.fromkeys((*known, *(name or NO_TARGET_NAME for name in names))))

    def _objectness(
        self, proposals: QueryProposals, assignments: list[PatchAssignment]
    ) -> torch.Tensor:
        logits, targets = [], []
        for row, assignment in zip(proposals.objectness_logits, assignments, strict=True):
            sampled = torch.cat([assignment.patches, assignment.negatives])
            logits.append(row[sampled.to(row.device)])
            is_positive = torch.arange(len(sampled), device=row.device) < len(assignment.patches)
            targets.append(is_positive)
        return self.criterion.objectness(logits, targets)

    def _ranking(
        self,
        batched_inputs: list[dict],
        proposals: QueryProposals,
        assignments: list[PatchAssignment],
    ) -> torch.Tensor:
        """Only where one object is asked for: elsewhere all of a kind are."""
        rows = zip(batched_inputs, proposals.objectness_logits, assignments, strict=True)
        asked, rivals = [], []
        for item, logits, assignment in rows:
            if TASKS[item["task"]].has_one_answer:
                asked.append(logits[assignment.patches.to(logits.device)])
                rivals.append(logits[assignment.rivals.to(logits.device)])
            else:
                asked.append(logits[:0])
                rivals.append(logits[:0])
        return self.criterion.ranking(asked, rivals)

    def _log_assignment(
        self, assignments: list[PatchAssignment], instances: list[Instances]
    ) -> None:
        objects = sum(len(image) for image in instances)
        unassigned = sum(assignment.num_unassigned for assignment in assignments)
        storage = get_event_storage()
        storage.put_scalar("rose/unassigned_share", unassigned / max(objects, 1))
        positives = sum(len(assignment.patches) for assignment in assignments)
        storage.put_scalar("rose/positives_per_image", positives / len(assignments))


def trained_names(dataset_name: str) -> tuple[str, ...]:
    """The names of a dataset's classes that training may tell, equal names merged.

    Args:
        dataset_name: a registered dataset.
    """
    metadata = MetadataCatalog.get(dataset_name)
    classes = CategoryVocabulary.from_metadata(metadata).class_names
    # Classes held out to measure open naming must not even be negatives.
    unseen = set(metadata.get("unseen_classes", ()))
    return tuple(dict.fromkeys(name for name in classes if name not in unseen))


@dataclass(frozen=True)
class LossWeights:
    """Factor of each term (MODEL.ROSE.LOSS_WEIGHT)."""

    text: float = 1.0
    category: float = 1.0
    mask_bce: float = 2.0
    mask_dice: float = 0.5
    objectness: float = 1.0
    siglip: float = 1.0
    ranking: float = 0.0
    quality: float = 0.0

    def for_framework(self, framework: Framework) -> LossWeights:
        """Without the terms a framework has nothing to compute of.

        The names of one that does not decode them are part of the text; a stack knows nothing but
        what it writes, so there is no objectness.
        """
        weights = self if framework.decodes_names else replace(self, category=0.0)
        if framework.draws_by_patch:
            return weights
        return replace(weights, objectness=0.0, ranking=0.0)


class Pairs(NamedTuple):
    """Patches that learn masks and names, on the CPU; M pairs, at least 1.

    Attributes:
        patches: (M,) long.
        objects: (M,) long, the object of each.
        weights: (M,) by which the pairs of one object share 1.
    """

    patches: torch.Tensor
    objects: torch.Tensor
    weights: torch.Tensor


@dataclass
class PairSupervision:
    """Everything the pair losses of one image need; M pairs, M may be 0.

    Attributes:
        mask_logits: (M, m, m).
        mask_targets: (M, m, m) in 0..1.
        valid: (m, m) bool, False on padding.
        category_losses: (M,) cross entropy of each pair's name.
        quality_losses: (M,) squared errors of the predicted IoUs.
        siglip_embeddings: (M, T) predictions.
        siglip_bank: (C, T) embeddings of the sample's vocabulary.
        siglip_targets: (M,) long rows of the bank.
        weights: (M,) by which the pairs of one object share 1.
    """

    mask_logits: torch.Tensor
    mask_targets: torch.Tensor
    valid: torch.Tensor
    category_losses: torch.Tensor
    quality_losses: torch.Tensor
    siglip_embeddings: torch.Tensor
    siglip_bank: torch.Tensor
    siglip_targets: torch.Tensor
    weights: torch.Tensor


class RoseCriterion:
    """Weighs ROSE's loss terms of every image; a batch's loss is the mean over its images.

    An image without anything to learn for a term has loss 0 there and counts in that mean, so
    that accumulating micro-batches equals one large batch.
    """

    def __init__(self, weights: LossWeights, siglip_temperature: float) -> None:
        """
        Args:
            weights: factors of the terms.
            siglip_temperature: of the InfoNCE loss.
        """
        self.weights = weights
        self.siglip_temperature = siglip_temperature

    def text(
        self, logits: torch.Tensor, labels: torch.Tensor, images: torch.Tensor, num_images: int
    ) -> torch.Tensor:
        """Cross entropy of the responses.

        Args:
            logits: (T, V) of all response tokens of the batch.
            labels: (T,) long.
            images: (T,) long, image of each token.
            num_images: B.

        Returns:
            (B,) losses.
        """
        return self.weights.text * text_cross_entropy(logits, labels, images, num_images)

    def objectness(self, logits: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        """Binary cross entropy of the sampled patches.

        Args:
            logits: B tensors (Q_i,).
            targets: B bool tensors (Q_i,), True for positives.

        Returns:
            (B,) losses.
        """
        terms = [
            objectness_loss(logit, target.to(logit.dtype)).sum() / max(len(target), 1)
            for logit, target in zip(logits, targets, strict=True)
        ]
        return self.weights.objectness * torch.stack(terms)

    def ranking(self, asked: list[torch.Tensor], rivals: list[torch.Tensor]) -> torch.Tensor:
        """Whether the best patch is one of the asked object's; not in the paper.

        Args:
            asked: B tensors (P_i,), objectness logits of the asked object's patches.
            rivals: B tensors (R_i,), of the patches outside its window.

        Returns:
            (B,) losses.
        """
        terms = [patch_ranking_loss(*image) for image in zip(asked, rivals, strict=True)]
        return self.weights.ranking * torch.stack(terms)

    def pairs(self, images: list[PairSupervision]) -> dict[str, torch.Tensor]:
        """Mask, name, SigLIP and quality losses (B,) of the matched patches of B images."""
        terms = [self._pairs_of_image(image) for image in images]
        factors = {
            "loss_mask_bce": self.weights.mask_bce,
            "loss_mask_dice": self.weights.mask_dice,
            "loss_category": self.weights.category,
            "loss_siglip": self.weights.siglip,
        }
        if self.weights.quality:
            factors["loss_quality"] = self.weights.quality
        return {
            name: factor * torch.stack([term[name] for term in terms])
            for name, factor in factors.items()
        }

    def _pairs_of_image(self, image: PairSupervision) -> dict[str, torch.Tensor]:
        bce = sigmoid_bce_mask_loss(image.mask_logits, image.mask_targets, image.valid)
        dice = dice_loss(image.mask_logits, image.mask_targets, image.valid)
        siglip = info_nce_loss(
            image.siglip_embeddings,
            image.siglip_bank,
            image.siglip_targets,
            self.siglip_temperature,
        )
        share = image.weights / image.weights.sum().clamp(min=1e-6)
        return {
            "loss_mask_bce": (bce * share).sum(),
            "loss_mask_dice": (dice * share).sum(),
            "loss_category": (image.category_losses * share).sum(),
            "loss_siglip": (siglip * share).sum(),
            "loss_quality": (image.quality_losses * share).sum(),
        }
