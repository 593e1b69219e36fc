"""One region of an answer that is to be refined, and how the model is asked to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rose_d2.layers.mask_ops import mask_coverage
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.refinement_templates import build_refinement_instruction, normalised_box
from rose_d2.structures.refinement_request import NormalisedBox, RefinementRequest

TASK = "refinement"
# What a second turn takes over from the first.
_PASSED_ON = (
    "image",
    "sam_image",
    "height",
    "width",
    "file_name",
    "image_id",
    "dataset_name",
    "candidates",
    "ref_id",
    "sent_id",
)


@dataclass(frozen=True)
class RegionRefinement:
    """One turn about one region, chosen with ground truth.

    Attributes:
        situation: "mask", "category" or "missed".
        prior: bool (H, W) with at least one pixel, the mask to be repaired; None for "missed".
        target: bool (H, W), the region in the ground truth; empty where the prior touches none.
        position: what is refined in the answer: a class (semantic), a row of the instances
            (instance), 0 (referring).
        name: before refinement; "" for "missed".
        class_id: contiguous class before refinement, -1 for none.
        target_class: contiguous class of the target, -1 for none.
        expression: what the prior was asked for with; None if not by a referring expression.
        ignored: bool (H, W), pixels without ground truth; None for none.
    """

    situation: str
    prior: Tensor | None
    target: Tensor
    position: int = 0
    name: str = ""
    class_id: int = -1
    target_class: int = -1
    expression: str | None = None
    ignored: Tensor | None = None

    def view(self, side: int) -> Tensor:
        """What the instruction's box encloses, bool (side, side): the prior, or else the target."""
        return mask_in_view(self.target if self.prior is None else self.prior, side)

    def box(self, side: int) -> NormalisedBox:
        """The box of `view` in words."""
        return normalised_box(self.view(side).numpy(), side)

    def iou(self, mask: Tensor | None) -> float:
        """IoU of a mask with the target; 0.0 for None.

        Args:
            mask: bool (H, W).
        """
        if mask is None:
            return 0.0
        known = torch.ones_like(self.target) if self.ignored is None else ~self.ignored
        mask, target = mask.to(self.target.device) & known, self.target & known
        union = int((mask | target).sum())
        return int((mask & target).sum()) / union if union else 0.0


def refinement_input(item: dict, region: RegionRefinement, *, within_box: bool = True) -> dict:
    """The model's input for one refinement.

    Mask and box are made in the language model's view, as in training.

    Args:
        item: of the first turn, see `RoseDatasetMapper`.
        region: what to ask for.
        within_box: the answering patch must touch the box of the instruction. Not where there is
            an expression, for then the prior may lie on another object.

    Returns:
        An item of `batched_inputs` of task "refinement", with the first wording of the situation.
    """
    side = item["image"].shape[-1]
    wrong_name = region.name if region.situation == "category" else None
    box = region.box(side)
    request = RefinementRequest(region.situation, box, wrong_name, region.expression)
    prior = torch.zeros(side, side) if region.prior is None else region.view(side)
    return {
        **{key: item[key] for key in _PASSED_ON if key in item},
        "task": TASK,
        "conversation": Conversation(build_refinement_instruction(request)),
        "prior_mask": prior[None].float(),
        **({"answer_box": box} if within_box and region.expression is None else {}),
    }


def mask_in_view(mask: Tensor, side: int) -> Tensor:
    """Bring a mask to the language model's square view.

    Args:
        mask: bool (H, W) with at least one pixel.
        side: I.

    Returns:
        bool (I, I) on the CPU, with at least one pixel: a mask too thin for any pixel of the view
        to be half covered keeps the pixels it touches.
    """
    (coverage,) = mask_coverage(mask[None], (side, side)).cpu()
    view = coverage >= 0.5
    return view if view.any() else coverage >= coverage.max()
