"""The inference half of ROSE and its settings: from proposals to detectron2's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Instances

from rose_d2.layers.logit_masks import LogitMasks
from rose_d2.layers.masks import mask_nms
from rose_d2.modeling.assignment import patches_touching, select_patches
from rose_d2.modeling.category_decoder import CandidateTrie, CategoryDecoder, DecodedNames
from rose_d2.modeling.mask_head import MaskHead, MaskView, view_size
from rose_d2.modeling.patch_analyzer import ANY_ROLE, STUFF_ROLE, PatchAnalyzer
from rose_d2.modeling.postprocessing import (
    classes_at,
    instance_inference,
    known_instances,
    panoptic_inference,
    panoptic_levels,
    referring_inference,
    semantic_inference,
)
from rose_d2.prompts.tasks import TASKS, Task
from rose_d2.structures.patches import PatchGrid, QueryProposals
from rose_d2.vocabulary.text_embeddings import TextEmbeddingBank
from rose_d2.vocabulary.vocabulary import (
    MAPPING_RULES,
    CategoryVocabulary,
    VocabularySettings,
    build_vocabulary,
    with_stuff,
)

# The leaf of a candidate list for everything that is none of the candidates.
OTHER_NAME = "other"
# Fields of the candidates that only inference itself needs.
_INTERNAL_FIELDS = ("low_res_masks", "category_embeddings", "siglip_embeddings")
# Fields by which a second turn is judged.
_QUALITY_FIELDS = ("mask_quality", "prior_quality")


class Inference:
    """Top-K patches -> masks -> mask NMS -> names -> classes -> outputs of the task.

    Names are decoded after NMS, because decoding a hundred duplicates costs as much as the image.
    Nothing of the answer is in the prompt.
    """

    def __init__(
        self,
        *,
        settings: InferenceSettings,
        grid: PatchGrid,
        patch_analyzer: PatchAnalyzer,
        mask_head: MaskHead,
        category_decoder: CategoryDecoder,
        make_vocabulary: Callable[[Metadata], CategoryVocabulary],
    ) -> None:
        """
        Args:
            settings: thresholds and counts.
            grid: patches of the LMM's view.
            patch_analyzer: embeds the chosen patches.
            mask_head: draws their masks.
            category_decoder: names from embeddings.
            make_vocabulary: classes of a dataset from its metadata.
        """
        self.settings = settings
        self.grid = grid
        self.patch_analyzer = patch_analyzer
        self.mask_head = mask_head
        self.category_decoder = category_decoder
        self._make_vocabulary = make_vocabulary
        self._vocabularies: dict[tuple[str, bool], CategoryVocabulary] = {}
        self._last_trie: CandidateTrie | None = None

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        *,
        grid: PatchGrid,
        patch_analyzer: PatchAnalyzer,
        mask_head: MaskHead,
        category_decoder: CategoryDecoder,
        text_embeddings: TextEmbeddingBank,
    ) -> Inference:
        """Read the TEST group.

        Args:
            cfg: the full config.
            grid: see `__init__`, as the next three.
            patch_analyzer: see there.
            mask_head: see there.
            category_decoder: see there.
            text_embeddings: of class names, for the vocabularies' similarity rule.
        """
        return cls(
            settings=InferenceSettings.from_config(cfg),
            grid=grid,
            patch_analyzer=patch_analyzer,
            mask_head=mask_head,
            category_decoder=category_decoder,
            make_vocabulary=partial(
                build_vocabulary, VocabularySettings.from_config(cfg), bank=text_embeddings
            ),
        )

    def __call__(
        self, batched_inputs: list[dict], proposals: QueryProposals, image_embeddings: torch.Tensor
    ) -> list[dict]:
        """One output dict per input, at its original size (see `ROSE.forward`).

        Args:
            batched_inputs: B dicts.
            proposals: of the patch analyzer.
            image_embeddings: (B, E, g, g) of the mask head.
        """
        drawn = [
            self.draw(item, proposals, image_embeddings, index)
            for index, item in enumerate(batched_inputs)
        ]
        if not self.settings.nms_class_aware:
            drawn = self._each(self.suppress, drawn, batched_inputs)
        names = self.spell(drawn, batched_inputs, proposals)
        named = self._each(self.name, drawn, batched_inputs, names)
        if self.settings.nms_class_aware:
            named = self._each(self.suppress, named, batched_inputs)
        return self._each(self.answer, named, batched_inputs)

    @staticmethod
    def _each(step: Callable[..., Any], *images: Sequence[Any]) -> list[Any]:
        return [step(*image) for image in zip(*images, strict=True)]

    def draw(
        self, item: dict, proposals: QueryProposals, image_embeddings: torch.Tensor, index: int
    ) -> Instances:
        """Choose the patches of image `index` and draw their masks, in low resolution."""
        patches = self._select(proposals, index, item, self.grid)
        predictions = self.patch_analyzer.embed(proposals, index, patches)
        embedding = image_embeddings[index : index + 1]
        (drawn,) = self.mask_head.decode(embedding, [predictions], [MaskView.of(item)])
        candidates = Instances((item["height"], item["width"]))
        candidates.scores = predictions.scores
        candidates.low_res_masks = drawn.logits
        candidates.mask_quality = drawn.quality.float()
        candidates.prior_quality = drawn.prior_quality.float()
        candidates.pred_roles = self._roles(proposals, patches)
        candidates.pred_patches = patches
        candidates.category_embeddings = predictions.category_embeddings
        candidates.siglip_embeddings = predictions.siglip_embeddings
        return candidates

    def suppress(self, candidates: Instances, item: dict) -> Instances:
        """Mask NMS, on copies of a size that does not grow with the image.

        Names, where there are any already, keep candidates of different names apart.
        """
        if len(candidates) < 2:
            return candidates
        size = nms_size(candidates.image_size, self.settings.nms_longest_side)
        masks = self.mask_head.upscale(candidates.low_res_masks, view_size(item), size).tensor
        kinds = None
        if candidates.has("pred_category_names"):
            names = list(candidates.pred_category_names)
            first = [names.index(name) for name in names]
            kinds = torch.tensor(first, dtype=torch.long, device=masks.device)
        return candidates[mask_nms(masks, candidates.scores, self.settings.nms_thresh, kinds)]

    def spell(
        self,
        images: Sequence[Instances],
        batched_inputs: Sequence[dict],
        proposals: QueryProposals | None = None,
    ) -> list[DecodedNames]:
        """Names of the candidates of B images.

        Those that may be spelled alike are decoded together: it takes as many steps as its
        longest name has tokens, however many there are.

        Args:
            images: candidates of each, with category_embeddings and pred_patches.
            batched_inputs: B items.
            proposals: has the names where the response says them; None: they are decoded.
        """
        if proposals is not None and proposals.names is not None:
            return [proposals.names(i, image.pred_patches) for i, image in enumerate(images)]
        allowed = [_allowed_names(item) for item in batched_inputs]
        names: dict[int, DecodedNames] = {}
        for group in dict.fromkeys(allowed):
            chosen = [index for index, words in enumerate(allowed) if words == group]
            embeddings = [images[index].category_embeddings for index in chosen]
            trie = self._trie(group) if group else None
            decoded = self.category_decoder.generate(torch.cat(embeddings), trie)
            lengths = [len(part) for part in embeddings]
            rows = torch.arange(len(decoded.names), device=embeddings[0].device).split(lengths)
            names |= {index: decoded[part] for index, part in zip(chosen, rows, strict=True)}
        return [names[index] for index in range(len(images))]

    def name(self, candidates: Instances, item: dict, decoded: DecodedNames) -> Instances:
        """Take names; candidates with none of the allowed ones drop out."""
        allowed = _allowed_names(item)
        candidates.pred_category_names = decoded.names
        candidates.name_scores = decoded.scores.exp()
        if not allowed:
            return candidates
        # Neither "other" nor, where a response says what it likes, anything else.
        chosen = [name in item["candidates"] for name in decoded.names]
        device = candidates.scores.device
        return candidates[torch.tensor(chosen, dtype=torch.bool, device=device)]

    def answer(self, candidates: Instances, item: dict) -> dict:
        """Look up the classes of the names and write the outputs, in the original size."""
        # A copy, so that masks at full size go with it and do not wait for the batch.
        candidates = Instances(candidates.image_size, **candidates.get_fields())
        vocabulary = self.vocabulary(item.get("dataset_name"), TASKS[item["task"]].gives_stuff)
        metadata = self._classify(candidates, item, vocabulary)
        candidates.pred_masks = self.mask_head.upscale(
            candidates.low_res_masks, view_size(item), candidates.image_size
        )
        if self.settings.change_margin and "full_prior" in item:
            candidates.pred_masks = self._changed(candidates.pred_masks, item)
        has_one_answer = TASKS[item["task"]].has_one_answer
        for field in (*_INTERNAL_FIELDS, *(() if has_one_answer else _QUALITY_FIELDS)):
            candidates.remove(field)
        output = self._outputs(candidates, item, vocabulary)
        found = output["instances"]
        if vocabulary is not None:
            output["instances"] = known_instances(found, vocabulary.is_thing)
        return {**output, "open_instances": found, "metadata": metadata}

    def _changed(self, masks: LogitMasks, item: dict) -> LogitMasks:
        """The mask to be repaired, with what the answer is sure to change."""
        size = view_size(item)
        shown, _ = self.mask_head.targets(item["prior_mask"].to(masks.device) > 0.5, size)
        coverage = self.mask_head.upscale(shown, size, masks.image_size).whole()  # in 0..1
        logits = masks.whole()
        differs = (logits.sigmoid() - coverage).abs() > self.settings.change_margin
        kept = torch.where(item["full_prior"].to(logits.device), 1.0, -1.0)
        return LogitMasks(torch.where(differs, logits, kept))

    def vocabulary(
        self, dataset_name: str | None, gives_stuff: bool = False
    ) -> CategoryVocabulary | None:
        """Classes of a registered dataset, None where no dataset is named.

        Args:
            dataset_name: of the dataset.
            gives_stuff: whether stuff is asked for, which instance data may know too.
        """
        if not dataset_name:
            return None
        key = dataset_name, gives_stuff
        if key not in self._vocabularies:
            metadata = MetadataCatalog.get(dataset_name)
            metadata = with_stuff(metadata) if gives_stuff else metadata
            self._vocabularies[key] = self._make_vocabulary(metadata)
        return self._vocabularies[key]

    def _select(
        self, proposals: QueryProposals, index: int, item: dict, grid: PatchGrid
    ) -> torch.Tensor:
        settings, task = self.settings, TASKS[item["task"]]
        logits = proposals.objectness_logits[index]
        if task.has_one_answer and not self._is_multi_target(task):
            if "answer_box" in item and proposals.roles is not None:  # tokens have no place
                outside = ~patches_touching(grid, item["answer_box"]).to(logits.device)
                logits = logits.masked_fill(outside, -torch.inf)
            best = select_patches(logits, proposals.roles, top_k=1)
            return best[logits[best] > -torch.inf]  # a stack may be empty
        kept = select_patches(logits, proposals.roles, settings.top_k, settings.top_k_stuff)
        return kept[logits[kept].float().sigmoid() >= settings.objectness_floor(task)]

    def _is_multi_target(self, task: Task) -> bool:
        return task.takes_expression and self.settings.multi_target

    @staticmethod
    def _roles(proposals: QueryProposals, patches: torch.Tensor) -> torch.Tensor:
        if proposals.roles is None:
            return torch.full_like(patches, ANY_ROLE)
        return proposals.roles[patches]

    def _trie(self, names: tuple[str, ...]) -> CandidateTrie:
        """For all images of a dataset, or of a folder in the demo, it is the same one."""
        if self._last_trie is None or self._last_trie.names != names:
            self._last_trie = self.category_decoder.candidate_trie(names)
        return self._last_trie

    def _classify(
        self, candidates: Instances, item: dict, vocabulary: CategoryVocabulary | None
    ) -> Metadata:
        """Set `pred_classes` at the headline level and, for dense tasks, what all rules say.

        Returns:
            What the classes are: the dataset's metadata, or else the names themselves.
        """
        device = candidates.scores.device
        if vocabulary is None:
            spelled = list(candidates.pred_category_names)
            allowed = item["candidates"] if _allowed_names(item) else ()
            names = list(dict.fromkeys([*allowed, *spelled]))
            classes = [names.index(name) for name in spelled]
            candidates.pred_classes = torch.tensor(classes, dtype=torch.long, device=device)
            return Metadata(thing_classes=names, stuff_classes=names)
        class_ids, rules = vocabulary.map_names(
            list(candidates.pred_category_names),
            candidates.siglip_embeddings if vocabulary.wants_embeddings else None,
        )
        rule_ids = [MAPPING_RULES.index(rule) for rule in rules]
        candidates.mapped_classes = class_ids.to(device)
        candidates.mapping_rules = torch.tensor(rule_ids, dtype=torch.long, device=device)
        candidates.pred_classes = classes_at(candidates, self.settings.headline_level)
        if TASKS[item["task"]].has_one_answer:
            candidates.remove("mapped_classes")
            candidates.remove("mapping_rules")
        return MetadataCatalog.get(item["dataset_name"])

    def _outputs(
        self, candidates: Instances, item: dict, vocabulary: CategoryVocabulary | None
    ) -> dict:
        settings = self.settings
        task = TASKS[item["task"]]
        if task.has_one_answer:
            return referring_inference(
                candidates,
                multi_target=self._is_multi_target(task),
                score_threshold=settings.score_thresh,
                nms_threshold=settings.nms_thresh,
            )
        output: dict = {"instances": instance_inference(candidates, settings.score_thresh)}
        if task.output == "sem_seg" and vocabulary is not None:
            output |= semantic_inference(
                candidates,
                vocabulary.levels,
                settings.headline_level,
                len(vocabulary),
                settings.non_object_score,
                settings.semantic_merge,
            )
        if task.output == "panoptic_seg":
            output |= self._panoptic(candidates, vocabulary)
        return output

    def _panoptic(self, candidates: Instances, vocabulary: CategoryVocabulary | None) -> dict:
        settings = self.settings
        options = {
            "score_threshold": settings.panoptic_score_thresh,
            "overlap_threshold": settings.panoptic_overlap_thresh,
            "stuff_role": STUFF_ROLE,
        }
        if vocabulary is None:
            return {"panoptic_seg": panoptic_inference(candidates, **options)}
        levels = panoptic_levels(
            candidates, vocabulary.levels, is_thing=vocabulary.is_thing, **options
        )
        return {**levels[settings.headline_level], "levels": levels}


def nms_size(image_size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """Size at which masks are compared: the image's, shrunk to a longest side if that is less."""
    shrink = min(1.0, longest_side / max(image_size))
    height, width = (max(1, round(side * shrink)) for side in image_size)
    return height, width


def _allowed_names(item: dict) -> tuple[str, ...]:
    """The names that decoding may spell for an input, () for any."""
    task = TASKS[item["task"]]
    # A referring expression already says what its answer is.
    if task.takes_expression or not item.get("candidates"):
        return ()
    # The one answer of the other tasks about one region cannot be rejected.
    leaves = () if task.has_one_answer else (OTHER_NAME,)
    return tuple(dict.fromkeys([*item["candidates"], *leaves]))


@dataclass(frozen=True)
class InferenceSettings:
    """Thresholds and counts; `rose_d2/config/defaults.py` explains each and names its source."""

    top_k: int
    top_k_stuff: int
    score_thresh: float
    nms_thresh: float
    nms_class_aware: bool
    nms_longest_side: int
    non_object_score: float
    semantic_merge: str
    panoptic_score_thresh: float
    panoptic_overlap_thresh: float
    multi_target: bool
    change_margin: float
    headline_level: str

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
            nms_longest_side=test.NMS.LONGEST_SIDE,
            non_object_score=test.SEMANTIC.NON_OBJECT_SCORE,
            semantic_merge=test.SEMANTIC.MERGE,
            panoptic_score_thresh=test.PANOPTIC.SCORE_THRESH,
            panoptic_overlap_thresh=test.PANOPTIC.OVERLAP_THRESH,
            multi_target=test.REFERRING.MULTI_TARGET,
            change_margin=test.REFINEMENT.CHANGE_MARGIN,
            headline_level=test.VOCABULARY.LEVEL,
        )

    def objectness_floor(self, task: Task) -> float:
        """The objectness below which a candidate leaves no trace in the outputs of a task.

        Leaving such candidates out before masks are compared and names are decoded, which costs
        as much as the rest of the image, changes nothing: they only suppress or hide candidates
        of still lower objectness.

        Args:
            task: of the question.

        Returns:
            For instances their score threshold. A semantic candidate below the score of "no
            object" wins no pixel, unless candidates add up; a panoptic one has its own threshold.
            Both outputs come with instances.
        """
        if task.output == "sem_seg":
            hidden = self.non_object_score if self.semantic_merge == "max" else 0.0
            return min(self.score_thresh, hidden)
        if task.output == "panoptic_seg":
            return min(self.score_thresh, self.panoptic_score_thresh)
        return self.score_thresh
