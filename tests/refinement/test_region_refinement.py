import pytest
import torch

from rose_d2.refinement.regions import RegionRefinement, mask_in_view


def test_a_mask_is_brought_to_the_square_view():
    mask = torch.zeros(10, 20, dtype=torch.bool)
    mask[5:10] = True
    view = mask_in_view(mask, 40)
    expected = torch.zeros(40, 40, dtype=torch.bool)
    expected[20:40] = True
    assert torch.equal(view, expected)


def test_a_mask_too_thin_for_the_view_keeps_a_pixel():
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[50, 50] = True
    view = mask_in_view(mask, 10)
    assert view.sum() == 1 and view[5, 5]


def test_iou_leaves_out_what_is_ignored():
    target = torch.tensor([[True, True, False, False]])
    mask = torch.tensor([[True, False, True, True]])
    assert RegionRefinement("missed", None, target).iou(mask) == 0.25
    ignored = torch.tensor([[False, True, False, True]])
    region = RegionRefinement("missed", None, target, ignored=ignored)
    assert region.iou(mask) == 0.5
    assert region.iou(None) == 0.0


def test_two_empty_masks_have_no_overlap():
    empty = torch.zeros(1, 4, dtype=torch.bool)
    assert RegionRefinement("missed", None, empty).iou(empty) == 0.0


@pytest.mark.parametrize("situation", ["mask", "missed"])
def test_the_box_is_that_of_the_prior_or_else_of_the_target(situation):
    target = torch.zeros(10, 10, dtype=torch.bool)
    target[:, 5:] = True
    prior = target.T if situation == "mask" else None
    box = {"mask": (0, 500, 999, 999), "missed": (500, 0, 999, 999)}[situation]
    assert RegionRefinement(situation, prior, target).box(10) == box
