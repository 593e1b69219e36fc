"""Masks and names at the targets' own patches."""

import pytest
import torch

from rose_d2.evaluation.matched_targets import MatchedTargets, evaluate_matched_targets
from rose_d2.layers.logit_masks import LogitMasks


def test_summary_averages_overall_and_per_role():
    matched = MatchedTargets([0.5, 1.0, 0.0], [True, False, True], [0, 0, 3], num_unassigned=2)
    assert matched.summary() == pytest.approx(
        {
            "targets": 3,
            "unassigned": 2,
            "mask_iou": 50,
            "name_exact": 200 / 3,
            "mask_iou-small": 75,
            "name_exact-small": 50,
            "mask_iou-stuff": 0,
            "name_exact-stuff": 100,
        }
    )


def test_every_target_is_measured_at_its_own_patch(tiny_model, make_input, monkeypatch):
    """With masks that copy the ground truth of the patch's owner, every IoU is 100."""
    tiny_model.eval()
    item = make_input()
    truth = item["instances"].gt_masks.tensor
    owner_of = {}
    assignment = tiny_model.supervisor.assigner(
        item["instances"], item["negative_points"], item["ignore_mask"]
    )
    for patch, owner in zip(assignment.patches.tolist(), assignment.objects.tolist(), strict=True):
        owner_of[patch] = owner
    asked = []
    embed = tiny_model.patch_analyzer.embed

    def remember(proposals, index, patches):
        asked.append([owner_of[patch] for patch in patches.tolist()])
        return embed(proposals, index, patches)

    def draw(low_res, input_size, output_size):
        return LogitMasks(torch.where(truth[asked[-1]], 1.0, -1.0))

    monkeypatch.setattr(tiny_model.patch_analyzer, "embed", remember)
    monkeypatch.setattr(tiny_model.mask_head, "upscale", draw)
    summary = evaluate_matched_targets(tiny_model, [[item]]).summary()
    assert asked == [[0, 1]]
    assert summary["mask_iou"] == 100
    assert summary["targets"] == 2
