"""Assignment on a 6 x 6 grid of 14-pixel patches, worked out by hand.

Roles with the paper's layout, patch 0 at the top left:

    s m s s m s
    m l m m l m
    s t s s t s
    s m s s m s
    m l m m l m
    s t s s t s
"""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from rose_d2.modeling.assignment import (
    NegativeCounts,
    PatchAssigner,
    pair_weights,
    patches_touching,
    sample_pairs,
    select_patches,
)
from rose_d2.modeling.patch_analyzer import SuperPatchLayout
from rose_d2.structures.patches import PatchGrid

SIDE = 84
EVERY = NegativeCounts(wrong_role=99, not_asked=99, random=99)
NO_POINTS = torch.zeros(0, 2)
NOTHING_IGNORED = torch.zeros(SIDE, SIDE, dtype=torch.bool)
LOGITS = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.2])
ROLES = torch.tensor([3, 0, 3, 1, 3])  # 3 is stuff


def build_assigner(rows=("sms", "mlm", "sts"), window=3, counts=EVERY):
    layout = SuperPatchLayout(list(rows), (32.0, 96.0))
    return PatchAssigner(PatchGrid(6, 14), layout, window, counts)


def instances_of(*boxes, stuff=()):
    """Instances from (x0, y0, x1, y1) boxes; `stuff` lists which of them are stuff."""
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances((SIDE, SIDE))
    instances.gt_masks = BitMasks(masks)
    instances.gt_is_stuff = torch.tensor([i in stuff for i in range(len(boxes))], dtype=torch.bool)
    return instances


def owned(assignment, index):
    return sorted(assignment.patches[assignment.objects == index].tolist())


def test_small_object_gets_the_four_small_patches_around_its_centre():
    # 20 x 20 pixels centred on (21, 21), patch (1, 1): window rows 0-2, columns 0-2.
    result = build_assigner()(instances_of((11, 11, 31, 31)), NO_POINTS, NOTHING_IGNORED)
    assert owned(result, 0) == [0, 2, 12, 14]
    assert result.num_unassigned == 0


def test_medium_large_and_stuff_roles():
    medium = instances_of((2, 2, 40, 40))  # side 38, centre (21, 21)
    assert owned(build_assigner()(medium, NO_POINTS, NOTHING_IGNORED), 0) == [1, 6, 8]
    layout_bounds = SuperPatchLayout(["sms", "mlm", "sts"], (8.0, 16.0))
    assigner = PatchAssigner(PatchGrid(6, 14), layout_bounds, 3, EVERY)
    assert owned(assigner(medium, NO_POINTS, NOTHING_IGNORED), 0) == [7]  # now large
    stuff = instances_of((0, 0, 84, 42), stuff=[0])  # centre (42, 21): patch (1, 3)
    assert owned(build_assigner()(stuff, NO_POINTS, NOTHING_IGNORED), 0) == [16]


def test_smaller_object_wins_a_contested_patch():
    # Same centre patch (1, 1); the 10-pixel object claims all small patches of the window.
    objects = instances_of((6, 6, 36, 36), (16, 16, 26, 26))
    result = build_assigner()(objects, NO_POINTS, NOTHING_IGNORED)
    assert owned(result, 1) == [0, 2, 12, 14]
    # The larger takes the nearest free small patch: from (21, 21), (1.5, 1.5) in patches, the
    # small patches (0, 3), (2, 3), (3, 0), (3, 2) are equally far; the first is patch 3.
    assert owned(result, 0) == [3]


def test_centres_and_areas_of_a_data_worker_spare_the_masks():
    boxes = ((6, 6, 36, 36), (16, 16, 26, 26), (50, 50, 84, 60))
    torch.manual_seed(0)
    expected = build_assigner()(instances_of(*boxes), NO_POINTS, NOTHING_IGNORED)
    objects = instances_of(*boxes)
    objects.gt_centres = torch.tensor([[21, 21], [21, 21], [67, 55]], dtype=torch.float64)
    objects.gt_areas = torch.tensor([900, 100, 340])
    objects.gt_masks.tensor.zero_()
    torch.manual_seed(0)
    found = build_assigner()(objects, NO_POINTS, NOTHING_IGNORED)
    for name in ("patches", "objects", "negatives", "rivals"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_object_without_a_free_patch_in_reach_is_unassigned():
    # 17 objects of one pixel each on one spot cannot all have one of the small patches in reach.
    objects = instances_of(*[(20, 20, 21, 21)] * 17)
    result = build_assigner()(objects, NO_POINTS, NOTHING_IGNORED)
    # The first takes 4 of the 16 small patches, 12 more get one each.
    assert result.num_unassigned == 17 - 1 - 12
    assert len(result.patches) == len(result.patches.unique()) == 16


def test_window_of_the_any_layout_is_nine_patches():
    result = build_assigner(rows=("a",))(instances_of((11, 11, 31, 31)), NO_POINTS, NOTHING_IGNORED)
    assert owned(result, 0) == [0, 1, 2, 6, 7, 8, 12, 13, 14]


def test_wrong_role_patches_of_the_window_are_negative():
    counts = NegativeCounts(wrong_role=99, not_asked=0, random=0)
    result = build_assigner(counts=counts)(
        instances_of((11, 11, 31, 31)), NO_POINTS, NOTHING_IGNORED
    )
    assert sorted(result.negatives.tolist()) == [1, 6, 7, 8, 13]


def test_objects_not_asked_for_are_negative_but_never_positives():
    counts = NegativeCounts(wrong_role=0, not_asked=99, random=0)
    points = torch.tensor([[63.0, 63.0], [21.0, 21.0]])  # windows at patches (4, 4) and (1, 1)
    result = build_assigner(counts=counts)(instances_of((11, 11, 31, 31)), points, NOTHING_IGNORED)
    far = [21, 22, 23, 27, 28, 29, 33, 34, 35]
    assert sorted(result.negatives.tolist()) == sorted([1, 6, 7, 8, 13] + far)


def test_random_negatives_come_from_outside_all_windows_and_are_counted():
    counts = NegativeCounts(wrong_role=0, not_asked=0, random=5)
    points = torch.tensor([[63.0, 63.0]])
    result = build_assigner(counts=counts)(instances_of((11, 11, 31, 31)), points, NOTHING_IGNORED)
    windows = {0, 1, 2, 6, 7, 8, 12, 13, 14, 21, 22, 23, 27, 28, 29, 33, 34, 35}
    assert len(result.negatives) == 5
    assert not windows & set(result.negatives.tolist())


def test_rivals_are_all_patches_outside_the_windows():
    few = NegativeCounts(wrong_role=0, not_asked=2, random=0)
    points = torch.tensor([[63.0, 63.0], [35.0, 35.0]])
    result = build_assigner(counts=few)(instances_of((11, 11, 31, 31)), points, NOTHING_IGNORED)
    window = {0, 1, 2, 6, 7, 8, 12, 13, 14}
    assert set(result.rivals.tolist()) == set(range(36)) - window
    ignore = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    ignore[:, 42:] = True  # the right half
    result = build_assigner(counts=few)(instances_of((11, 11, 31, 31)), points, ignore)
    assert set(result.rivals.tolist()) == {p for p in range(36) if p % 6 < 3} - window


def test_no_negative_in_ignored_regions():
    ignore = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    ignore[:, 42:] = True  # the right half
    result = build_assigner()(instances_of((11, 11, 31, 31)), NO_POINTS, ignore)
    assert all(patch % 6 < 3 for patch in result.negatives.tolist())


def test_one_stuff_patch_is_positive_under_semantic_and_negative_under_instance():
    grass = (0, 42, 84, 84)  # centre (42, 63): patch (4, 3), its stuff patch is (5, 4) or 34
    dog = (11, 11, 31, 31)
    semantic = build_assigner()(instances_of(dog, grass, stuff=[1]), NO_POINTS, NOTHING_IGNORED)
    assert owned(semantic, 1) == [34]
    instance = build_assigner()(instances_of(dog), torch.tensor([[42.0, 63.0]]), NOTHING_IGNORED)
    assert 34 in instance.negatives.tolist()
    assert 34 not in instance.patches.tolist()


def test_image_without_objects():
    result = build_assigner()(instances_of(), NO_POINTS, NOTHING_IGNORED)
    assert len(result.patches) == 0
    assert sorted(result.negatives.tolist()) == list(range(36))


def test_every_object_keeps_a_pair_before_any_gets_a_second():
    objects = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    for _ in range(20):
        assert set(objects[sample_pairs(objects, 3)].tolist()) == {0, 1, 2}
    assert len(sample_pairs(objects, 99)) == 7
    assert len(sample_pairs(objects, 2)) == 2


def test_pairs_of_one_object_share_weight_one():
    weights = pair_weights(torch.tensor([5, 7, 5, 5]))
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 1.0, 1 / 3, 1 / 3]))


def test_highest_objectness_first():
    assert select_patches(LOGITS, ROLES, 3).tolist() == [1, 3, 2]


def test_reserved_slots_go_to_the_best_stuff_patches():
    assert select_patches(LOGITS, ROLES, 3, top_k_stuff=2).tolist() == [1, 2, 4]
    assert select_patches(LOGITS, ROLES, 4, top_k_stuff=1).tolist() == [1, 3, 2, 4]


def test_more_slots_than_patches_keep_all():
    assert select_patches(LOGITS, None, 100).tolist() == [1, 3, 2, 4, 0]


def test_reserving_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="TOP_K_STUFF 4"):
        select_patches(LOGITS, ROLES, 3, top_k_stuff=4)


def test_patches_that_a_box_touches():
    grid = PatchGrid(side=3, patch_size=14)  # patches end at 333 and 666 of 999
    touched = patches_touching(grid, (100, 350, 600, 900)).nonzero().flatten().tolist()
    assert touched == [3, 4, 6, 7]
    assert patches_touching(grid, (500, 500, 500, 500)).nonzero().flatten().tolist() == [4]
    assert patches_touching(grid, (999, 999, 999, 999)).nonzero().flatten().tolist() == [8]
    assert patches_touching(grid, (0, 0, 999, 999)).all()


@pytest.mark.parametrize(
    ("window", "patches"),
    [
        (1, [7]),
        (3, [0, 1, 2, 6, 7, 8, 12, 13, 14]),
        # Shifted inwards at the border.
        (5, [column + 6 * row for row in range(5) for column in range(5)]),
    ],
)
def test_the_window_of_the_config_is_used(tiny_cfg, window, patches):
    super_patch = tiny_cfg.MODEL.SUPER_PATCH
    super_patch.LAYOUT, super_patch.WINDOW = ["a"], window
    assigner = build_model(tiny_cfg).supervisor.assigner
    result = assigner(instances_of((11, 11, 31, 31)), NO_POINTS, NOTHING_IGNORED)
    assert owned(result, 0) == patches
    assert not set(result.rivals.tolist()) & set(patches)


def test_as_many_pairs_as_objects():
    objects = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    for _ in range(5):
        kept = sample_pairs(objects, 99, per_object=1)
        assert sorted(objects[kept].tolist()) == [0, 1, 2]
        assert len(sample_pairs(objects, 2, per_object=1)) == 2
        assert sorted(objects[sample_pairs(objects, 99, per_object=2)].tolist()) == [0, 0, 1, 1, 2]
