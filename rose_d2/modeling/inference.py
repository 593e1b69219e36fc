"""The inference half of ROSE: from proposals to detectron2's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from rose_d2.layers.nms import mask_nms
from rose_d2.modeling.backbone.lmm import LMMBackbone
from rose_d2.modeling.category_decoder import CategoryDecoder
from rose_d2.modeling.mask_head.sam_mask_head import SAMMaskHead
from rose_d2.modeling.patch_analyzer.patch_analyzer import StandardPatchAnalyzer
from rose_d2.modeling.patch_analyzer.selection import select_patches
from rose_d2.modeling.patch_analyzer.super_patch import ANY_ROLE, STUFF_ROLE
from rose_d2.modeling.postprocessing import (
    instance_inference,
    panoptic_inference,
    referring_inference,
    semantic_inference,
)
from rose_d2.modeling.vocabulary import CategoryVocabulary
from rose_d2.structures.query_proposals import QueryProposals

# The leaf of a candidate list for everything that is none of the candidates.
OTHER_NAME = "other"
# Masks of larger images are compared at this longest side, in pixels, to bound memory.
NMS_LONGEST_SIDE = 512


@dataclass(frozen=True)
class InferenceSettings:
    """The TEST keys, see `rose_d2/config.py`."""

    top_k: int
    top_k_stuff: int
    score_thresh: float
    nms_thresh: float
    nms_class_aware: bool
    non_object_score: float
    semantic_merge: str
    panoptic_score_thresh: float
    panoptic_overlap_thresh: float
    multi_target: bool

    @classmethod
    def from_config(cls, cfg: CfgNode) -> InferenceSettings:
        """Read the TEST group."""
        test = cfg.TEST
        return cls(
            top_k=test.TOP_K,
            top_k_stuff=test.TOP_K_STUFF,
            score_thresh=test.SCORE_THRESH,
            nms_thresh=test.NMS.THRESH,
            nms_class_aware=test.NMS.CLASS_AWARE,
            non_object_score=test.SEMANTIC.NON_OBJECT_SCORE,
            semantic_merge=test.SEMANTIC.MERGE,
            panoptic_score_thresh=test.PANOPTIC.SCORE_THRESH,
            panoptic_overlap_thresh=test.PANOPTIC.OVERLAP_THRESH,
            multi_target=test.REFERRING.MULTI_TARGET,
        )


class Inference:
    """Top-K patches -> masks -> mask NMS -> names -> classes -> outputs of the task.

    Names are decoded after NMS, because decoding a hundred duplicates costs as much as the image.
    Nothing of the answer is in the prompt.
    """

    def __init__(self, settings: InferenceSettings, category_decoder: CategoryDecoder) -> None:
        """
        Args:
            settings: thresholds and counts.
            category_decoder: names from embeddings.
        """
        self.settings = settings
        self.category_decoder = category_decoder
        self._vocabularies: dict[str, CategoryVocabulary] = {}

    def __call__(
        self,
        batched_inputs: list[dict],
        proposals: QueryProposals,
        image_embeddings: torch.Tensor,
        backbone: LMMBackbone,
        analyzer: StandardPatchAnalyzer,
        mask_head: SAMMaskHead,
    ) -> list[dict]:
        """One output dict per input, at its original size (see `ROSE.forward`)."""
        outputs = []
        for index, item in enumerate(batched_inputs):
            patches = self._select(proposals, index, item["task"])
            predictions = analyzer.embed(proposals, index, patches)
            input_size = tuple(item["sam_image"].shape[-2:])
            embedding = image_embeddings[index : index + 1]
            (low_res,) = mask_head.decode(embedding, [predictions], [input_size])
            candidates = Instances((item["height"], item["width"]))
            candidates.scores = predictions.scores
            candidates.low_res_masks = low_res
            candidates.pred_roles = self._roles(proposals, patches)
            candidates.pred_patches = patches
            candidates.category_embeddings = predictions.category_embeddings
            outputs.append(self._finish(self._name(candidates, item, backbone, mask_head), item))
        return outputs

    def _select(self, proposals: QueryProposals, index: int, task: str) -> torch.Tensor:
        settings = self.settings
        logits = proposals.objectness_logits[index]
        if task == "referring" and not settings.multi_target:
            return select_patches(logits, proposals.roles, top_k=1)
        kept = select_patches(logits, proposals.roles, settings.top_k, settings.top_k_stuff)
        # The threshold does not depend on names, so what it drops need not be named.
        return kept[logits[kept].float().sigmoid() >= settings.score_thresh]

    @staticmethod
    def _roles(proposals: QueryProposals, patches: torch.Tensor) -> torch.Tensor:
        if proposals.roles is None:
            return torch.full_like(patches, ANY_ROLE)
        return proposals.roles[patches]

    def _name(
        self, candidates: Instances, item: dict, backbone: LMMBackbone, mask_head: SAMMaskHead
    ) -> Instances:
        """Drop duplicates, spell the names, look up their classes and draw the masks full size."""
        settings = self.settings
        if not settings.nms_class_aware:
            candidates = candidates[self._nms(candidates, item, mask_head)]
        allowed = item.get("candidates")
        decoder = self.category_decoder
        trie = decoder.candidate_trie([*allowed, OTHER_NAME]) if allowed else None
        decoded = decoder.generate(backbone, candidates.category_embeddings, trie)
        candidates.pred_category_names = decoded.names
        candidates.name_scores = decoded.scores
        candidates.pred_classes = self._classes(candidates, item)
        if allowed:
            named = torch.tensor([name != OTHER_NAME for name in decoded.names], dtype=torch.bool)
            candidates = candidates[named.to(candidates.scores.device)]
        if settings.nms_class_aware:
            names = list(candidates.pred_category_names)
            ids = torch.tensor([names.index(name) for name in names], dtype=torch.long)
            candidates = candidates[self._nms(candidates, item, mask_head, ids)]
        candidates.mask_logits = mask_head.upscale(
            candidates.low_res_masks, tuple(item["sam_image"].shape[-2:]), candidates.image_size
        )
        candidates.remove("low_res_masks")
        candidates.remove("category_embeddings")
        return candidates

    def _nms(
        self,
        candidates: Instances,
        item: dict,
        mask_head: SAMMaskHead,
        classes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Positions kept by mask NMS, on copies of a size that does not grow with the image."""
        shrink = min(1.0, NMS_LONGEST_SIDE / max(candidates.image_size))
        size = tuple(max(1, round(side * shrink)) for side in candidates.image_size)
        logits = mask_head.upscale(
            candidates.low_res_masks, tuple(item["sam_image"].shape[-2:]), size
        )
        if classes is not None:
            classes = classes.to(logits.device)
        return mask_nms(logits > 0, candidates.scores, self.settings.nms_thresh, classes)

    def _classes(self, candidates: Instances, item: dict) -> torch.Tensor:
        vocabulary = self.vocabulary(item.get("dataset_name"))
        device = candidates.scores.device
        if vocabulary is None:
            return torch.full((len(candidates),), -1, device=device)
        return vocabulary.map_names(list(candidates.pred_category_names)).class_ids.to(device)

    def vocabulary(self, dataset_name: str | None) -> CategoryVocabulary | None:
        """Classes of a registered dataset, None where no dataset is named."""
        if not dataset_name:
            return None
        if dataset_name not in self._vocabularies:
            metadata = MetadataCatalog.get(dataset_name)
            self._vocabularies[dataset_name] = CategoryVocabulary.from_metadata(metadata)
        return self._vocabularies[dataset_name]

    def _finish(self, candidates: Instances, item: dict) -> dict:
        settings = self.settings
        task = item["task"]
        if task == "referring":
            return referring_inference(
                candidates,
                multi_target=settings.multi_target,
                score_threshold=settings.score_thresh,
                nms_threshold=settings.nms_thresh,
            )
        vocabulary = self.vocabulary(item.get("dataset_name"))
        output: dict = {"instances": instance_inference(candidates, settings.score_thresh)}
        if task == "semantic" and vocabulary is not None:
            output["sem_seg"] = semantic_inference(
                candidates, len(vocabulary), settings.non_object_score, settings.semantic_merge
            )
        if task == "panoptic":
            output["panoptic_seg"] = panoptic_inference(
                candidates,
                score_threshold=settings.panoptic_score_thresh,
                overlap_threshold=settings.panoptic_overlap_thresh,
                stuff_role=STUFF_ROLE,
                is_thing=None if vocabulary is None else vocabulary.is_thing,
            )
        return output
