"""How well the patches that own an object draw and name it, apart from finding and ranking."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from rose_d2.layers.masks import pairwise_mask_iou
from rose_d2.modeling.mask_head import MaskView
from rose_d2.modeling.meta_arch.rose import ROSE
from rose_d2.modeling.patch_analyzer import ROLES
from rose_d2.structures.patches import QueryProposals


@dataclass
class MatchedTargets:
    """One entry per annotated target that has a patch.

    Attributes:
        ious: mask IoU at the LMM view.
        names_right: whether the generated name is the annotated one, letter by letter.
        roles: role of the patch.
        num_unassigned: targets without a patch, not in the lists.
    """

    ious: list[float] = field(default_factory=list)
    names_right: list[bool] = field(default_factory=list)
    roles: list[int] = field(default_factory=list)
    num_unassigned: int = 0

    def summary(self) -> dict[str, float]:
        """Mean IoU and share of exact names, in percent, overall and per role."""
        rows = list(zip(self.ious, self.names_right, self.roles, strict=True))
        result = {"targets": float(len(rows)), "unassigned": float(self.num_unassigned)}
        for label, role in (("", None), *((f"-{name}", i) for i, name in enumerate(ROLES))):
            chosen = [(iou, right) for iou, right, r in rows if role in (None, r)]
            if chosen:
                result[f"mask_iou{label}"] = 100 * sum(i for i, _ in chosen) / len(chosen)
                result[f"name_exact{label}"] = 100 * sum(r for _, r in chosen) / len(chosen)
        return result


@torch.no_grad()
def evaluate_matched_targets(model: ROSE, loader: Iterable[list[dict]]) -> MatchedTargets:
    """Decode every target at its own patch with the highest objectness.

    The patches come from the assigner, as in training, so this measures mask and name quality
    alone; the evaluators measure the whole free-running system.

    Args:
        model: a ROSE in evaluation mode.
        loader: batches with ground truth (the training mapper without augmentation).
    """
    matched = MatchedTargets()
    for batched_inputs in tqdm(loader, desc="matched targets", unit="batch"):
        _, proposals, sam_features = model.perceive(batched_inputs)
        for index, item in enumerate(batched_inputs):
            _evaluate_image(model, proposals, sam_features, index, item, matched)
    return matched


def _evaluate_image(
    model: ROSE,
    proposals: QueryProposals,
    sam_features: torch.Tensor,
    index: int,
    item: dict,
    matched: MatchedTargets,
) -> None:
    """Add the targets of image `index` of a batch to `matched`."""
    assign = model.supervisor.assigner
    assignment = assign(item["instances"], item["negative_points"], item["ignore_mask"])
    instances = item["instances"].to(model.device)
    matched.num_unassigned += assignment.num_unassigned
    if not len(assignment.patches):
        return
    logits = proposals.objectness_logits[index].cpu()
    objects = assignment.objects.unique()
    own = [assignment.patches[assignment.objects == number] for number in objects]
    patches = torch.stack([patch[logits[patch].argmax()] for patch in own]).to(model.device)
    predictions = model.patch_analyzer.embed(proposals, index, patches)
    embedding = sam_features[index : index + 1]
    view = MaskView.of(item)
    (drawn,) = model.mask_head.decode(embedding, [predictions], [view])
    masks = model.mask_head.upscale(drawn.logits, view.size, instances.image_size)
    truth = instances.gt_masks.tensor[objects.to(model.device)]
    ious = pairwise_mask_iou(masks.tensor, truth).diagonal()
    names = model.inference.category_decoder.generate(predictions.category_embeddings).names
    true_names = instances.gt_category_names[objects]
    matched.ious += ious.tolist()
    matched.names_right += [a == b for a, b in zip(names, true_names, strict=True)]
    matched.roles += proposals.roles[patches].tolist()
