"""The training half of ROSE: from proposals and ground truth to the loss dict."""

from __future__ import annotations

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

from rose_d2.modeling.backbone.lmm import LMMBackbone, LMMOutput
from rose_d2.modeling.category_decoder import CategoryDecoder
from rose_d2.modeling.criterion import PairSupervision, RoseCriterion
from rose_d2.modeling.inference import ONE_MASK_TASKS
from rose_d2.modeling.mask_head.sam_mask_head import SAMMaskHead
from rose_d2.modeling.patch_analyzer.assignment import (
    PatchAssigner,
    PatchAssignment,
    pair_weights,
    sample_pairs,
)
from rose_d2.modeling.patch_analyzer.patch_analyzer import StandardPatchAnalyzer
from rose_d2.modeling.text_embeddings import TextEmbeddingBank
from rose_d2.modeling.vocabulary import CategoryVocabulary
from rose_d2.structures.category_names import CategoryNames
from rose_d2.structures.patch_predictions import PatchPredictions
from rose_d2.structures.query_proposals import QueryProposals

# Name of the dummy pair that runs through every module when an image has no target.
NO_TARGET_NAME = "object"


class Supervisor:
    """Matches patches with objects and computes every loss term (paper section 3.5).

    Every module runs once per micro-batch whatever the images contain: an image without a target
    contributes one dummy pair of weight 0, so that no rank of a distributed run waits for another.

    Attributes:
        image_losses: of the last batch: each term's values (B,) by image, without gradient.
    """

    def __init__(
        self,
        *,
        assigner: PatchAssigner,
        criterion: RoseCriterion,
        category_decoder: CategoryDecoder,
        text_embeddings: TextEmbeddingBank,
        max_pairs: int,
    ) -> None:
        """
        Args:
            assigner: which patches learn what.
            criterion: weighs and averages the terms.
            category_decoder: names from embeddings.
            text_embeddings: targets of the SigLIP head.
            max_pairs: pairs per image that reach the mask, name and SigLIP losses.
        """
        self.assigner = assigner
        self.criterion = criterion
        self.category_decoder = category_decoder
        self.text_embeddings = text_embeddings
        self.max_pairs = max_pairs
        self.image_losses: dict[str, torch.Tensor] = {}
        self._vocabularies: dict[str, tuple[str, ...]] = {}

    def losses(
        self,
        batched_inputs: list[dict],
        lmm_output: LMMOutput,
        proposals: QueryProposals,
        image_embeddings: torch.Tensor,
        backbone: LMMBackbone,
        analyzer: StandardPatchAnalyzer,
        mask_head: SAMMaskHead,
    ) -> dict[str, torch.Tensor]:
        """Loss terms of a batch, each a mean over its images.

        Args:
            batched_inputs: B dicts with `instances`, `negative_points` and `ignore_mask`.
            lmm_output: of the backbone.
            proposals: of the analyzer.
            image_embeddings: (B, E, g, g) of the mask head.
            backbone: decodes names.
            analyzer: embeds the chosen patches.
            mask_head: draws their masks.
        """
        device = proposals.objectness_logits.device
        instances = [item["instances"].to(device) for item in batched_inputs]
        assignments = [
            self.assigner(objects, item["negative_points"], item["ignore_mask"])
            for objects, item in zip(instances, batched_inputs, strict=True)
        ]
        self._log_assignment(assignments, instances)
        pairs = [self._choose_pairs(assignment) for assignment in assignments]
        predictions = [
            analyzer.embed(proposals, index, patches) for index, (patches, _, _) in enumerate(pairs)
        ]
        input_sizes = [tuple(item["sam_image"].shape[-2:]) for item in batched_inputs]
        masks = mask_head.decode(image_embeddings, predictions, input_sizes)
        names = self._names(instances, pairs)
        category_losses = self._category_losses(backbone, predictions, names)
        supervisions = [
            self._supervise(*image, mask_head)
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
        self.image_losses = {name: loss.detach() for name, loss in losses.items()}
        return {name: loss.mean() for name, loss in losses.items()}

    def _choose_pairs(
        self, assignment: PatchAssignment
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches, objects and weights of the pairs kept; one of weight 0 where there are none."""
        if not len(assignment.patches):
            dummy = assignment.patches.new_zeros(1)
            return dummy, dummy, torch.zeros(1, device=dummy.device)
        kept = sample_pairs(assignment.objects, self.max_pairs)
        objects = assignment.objects[kept]
        return assignment.patches[kept], objects, pair_weights(objects)

    def _names(self, instances: list[Instances], pairs: list[tuple]) -> list[CategoryNames]:
        """Name of each pair's object, "" where the annotation has none."""
        return [
            objects.gt_category_names[index] if len(objects) else CategoryNames([""])
            for objects, (_, index, _) in zip(instances, pairs, strict=True)
        ]

    def _category_losses(
        self,
        backbone: LMMBackbone,
        predictions: list[PatchPredictions],
        names: list[CategoryNames],
    ) -> tuple[torch.Tensor, ...]:
        """Cross entropy of every pair's name; all names of the batch are decoded together."""
        flat = CategoryNames.cat(names)
        spelled = CategoryNames(name or NO_TARGET_NAME for name in flat)
        embeddings = torch.cat([p.category_embeddings for p in predictions])
        losses = self.category_decoder.loss(backbone, embeddings, spelled)
        is_named = torch.tensor([bool(name) for name in flat], device=losses.device)
        return (losses * is_named).split([len(part) for part in names])

    def _supervise(
        self,
        item: dict,
        instances: Instances,
        pair: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        prediction: PatchPredictions,
        mask_logits: torch.Tensor,
        names: CategoryNames,
        category_losses: torch.Tensor,
        mask_head: SAMMaskHead,
    ) -> PairSupervision:
        _, objects, weights = pair
        masks = instances.gt_masks.tensor
        if not len(instances):
            masks = masks.new_zeros(1, *instances.image_size)
        targets, valid = mask_head.targets(masks, tuple(item["sam_image"].shape[-2:]))
        bank_names = self._bank_names(item["dataset_name"], names)
        row_of = {name: row for row, name in enumerate(bank_names)}
        rows = [row_of[name or NO_TARGET_NAME] for name in names]
        return PairSupervision(
            mask_logits=mask_logits,
            mask_targets=targets[objects],
            valid=valid,
            category_losses=category_losses,
            siglip_embeddings=prediction.siglip_embeddings,
            siglip_bank=self.text_embeddings(bank_names).to(mask_logits.device),
            siglip_targets=torch.tensor(rows, device=mask_logits.device),
            weights=weights,
        )

    def _bank_names(self, dataset_name: str, names: CategoryNames) -> tuple[str, ...]:
        """The dataset's own vocabulary, equal names merged, and whatever else is named here."""
        if dataset_name not in self._vocabularies:
            metadata = MetadataCatalog.get(dataset_name)
            classes = CategoryVocabulary.from_metadata(metadata).class_names
            # Classes held out to measure open naming must not even be negatives.
            unseen = set(metadata.get("unseen_classes", ()))
            known = [name for name in classes if name not in unseen]
            self._vocabularies[dataset_name] = tuple(dict.fromkeys(known))
        known = self._vocabularies[dataset_name]
        return tuple(dict.fromkeys((*known, *(name or NO_TARGET_NAME for name in names))))

    def _objectness(
        self, proposals: QueryProposals, assignments: list[PatchAssignment]
    ) -> torch.Tensor:
        logits, targets = [], []
        for row, assignment in zip(proposals.objectness_logits, assignments, strict=True):
            sampled = torch.cat([assignment.patches, assignment.negatives])
            logits.append(row[sampled])
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
            is_asked = item["task"] in ONE_MASK_TASKS
            asked.append(logits[assignment.patches if is_asked else []])
            rivals.append(logits[assignment.rivals if is_asked else []])
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
