"""From mask candidates to instances and to the answer of a referring expression."""

from __future__ import annotations

from detectron2.structures import Instances

from rose_d2.layers.nms import mask_nms
from rose_d2.modeling.mask_candidates import best_first, binarised


def instance_inference(candidates: Instances, score_threshold: float) -> Instances:
    """Instances above a score, best first.

    Args:
        candidates: see `mask_candidates`.
        score_threshold: smallest objectness to keep.

    Returns:
        Instances with `pred_masks` bool (N, H, W) and tight `pred_boxes` in place of the logits;
        candidates without a positive pixel are dropped.
    """
    instances = binarised(candidates)
    keep = (instances.scores >= score_threshold) & instances.pred_masks.flatten(1).any(dim=1)
    return instances[best_first(instances.scores, keep)]


def referring_inference(
    candidates: Instances,
    *,
    multi_target: bool = False,
    score_threshold: float = 0.0,
    nms_threshold: float = 1.0,
) -> dict:
    """The answer to a referring expression.

    Args:
        candidates: see `mask_candidates`.
        multi_target: False answers with the candidate of highest objectness, whatever its score.
            True answers with the union of all above `score_threshold` after NMS, possibly none.
        score_threshold: smallest objectness, only for `multi_target`.
        nms_threshold: IoU above which the worse mask is dropped, only for `multi_target`.

    Returns:
        ref_seg: bool (H, W), mask logits above 0; all False when there is no answer.
        ref_patch: patch index of the best candidate, -1 when there is no answer.
        ref_score: its objectness, 0.0 when there is no answer.
        instances: the chosen ones, with `pred_masks` and `pred_boxes`.
    """
    chosen = binarised(candidates)
    if multi_target:
        chosen = chosen[best_first(chosen.scores, chosen.scores >= score_threshold)]
        chosen = chosen[mask_nms(chosen.pred_masks, chosen.scores, nms_threshold)]
    else:
        chosen = chosen[best_first(chosen.scores)[:1]]
    found = len(chosen) > 0
    return {
        "ref_seg": chosen.pred_masks.any(dim=0),
        "ref_patch": int(chosen.pred_patches[0]) if found else -1,
        "ref_score": float(chosen.scores[0]) if found else 0.0,
        "instances": chosen,
    }
