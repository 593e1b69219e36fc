import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rose_d2.layers import masks as mask_ops
from rose_d2.layers.masks import (
    mask_areas,
    mask_centre,
    mask_coverage,
    mask_nms,
    masks_to_boxes,
    pairwise_intersection,
    pairwise_mask_iou,
    resize_lines,
)


def _mask(height, width, *rectangles):
    mask = torch.zeros(height, width, dtype=torch.bool)
    for top, left, bottom, right in rectangles:
        mask[top:bottom, left:right] = True
    return mask


def test_boxes_are_tight_and_end_after_the_last_pixel():
    masks = torch.stack([_mask(6, 8, (1, 2, 3, 7)), _mask(6, 8), _mask(6, 8, (5, 7, 6, 8))])
    assert masks_to_boxes(masks).tensor.tolist() == [[2, 1, 7, 3], [0, 0, 0, 0], [7, 5, 8, 6]]


def test_boxes_of_no_masks():
    assert masks_to_boxes(torch.zeros(0, 4, 4, dtype=torch.bool)).tensor.shape == (0, 4)


def test_iou_by_hand():
    left, middle, empty = _mask(2, 4, (0, 0, 2, 2)), _mask(2, 4, (0, 1, 2, 3)), _mask(2, 4)
    ious = pairwise_mask_iou(torch.stack([left, empty]), torch.stack([left, middle, empty]))
    expected = torch.tensor([[1.0, 2 / 6, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(ious, expected)


def test_areas():
    masks = torch.rand(4, 7, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    masks[2] = False
    assert mask_areas(masks).equal(masks.flatten(1).sum(dim=1))
    assert mask_areas(masks[:0]).equal(torch.zeros(0, dtype=torch.long))


def test_intersection_is_exact_across_chunks(monkeypatch):
    monkeypatch.setattr(mask_ops, "_PIXELS_PER_CHUNK", 7)
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 9, 11)) > 0.4, rng.random((2, 9, 11)) > 0.4
    expected = [[int((x & y).sum()) for y in b] for x in a]
    assert pairwise_intersection(torch.tensor(a), torch.tensor(b)).tolist() == expected


def test_intersection_is_exact_under_autocast():
    masks = torch.ones(1, 300, 301, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pairwise_intersection(masks, masks).item() == 300 * 301


def test_intersection_refuses_masks_of_two_sizes():
    with pytest.raises(ValueError, match="one size"):
        pairwise_mask_iou(
            torch.ones(1, 2, 2, dtype=torch.bool), torch.ones(1, 4, 4, dtype=torch.bool)
        )


def test_centre_is_the_centroid_of_pixel_centres():
    assert mask_centre(_mask(4, 6, (1, 2, 3, 6))) == (4.0, 2.0)
    assert mask_centre(_mask(4, 6, (3, 5, 4, 6))) == (5.5, 3.5)


def test_centre_of_a_ring_is_its_deepest_inside_point():
    ring = _mask(9, 9, (0, 0, 9, 9))
    ring[1:6, 1:8] = False  # thickness 1 everywhere but the bottom, which is 3 thick
    x, y = mask_centre(ring)
    assert ring[int(y), int(x)]
    assert y == 7.5 and 1 < x < 8


def test_equal_depths_are_told_apart_by_place_and_not_by_rounding(monkeypatch):
    two_bars = _mask(9, 11, (0, 0, 3, 9), (8, 0, 11, 9))
    exact = cv2.distanceTransform

    def rounded_up_on_the_right(*args):
        depth = exact(*args)
        depth[:, 6:] *= 1 + 1e-7
        return depth

    expected = mask_centre(two_bars)
    assert expected[0] == 1.5
    monkeypatch.setattr(cv2, "distanceTransform", rounded_up_on_the_right)
    assert mask_centre(two_bars) == expected


def test_centre_of_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="without any pixel"):
        mask_centre(_mask(3, 3))


def test_lines_are_resized_as_bilinear_resizing_does_it():
    picture = torch.rand(3, 7, 7)
    expected = F.interpolate(picture[:, None], (5, 11), mode="bilinear", align_corners=False)[:, 0]
    rows, columns = (resize_lines(torch.eye(7), side).T for side in (5, 11))
    torch.testing.assert_close(rows @ picture @ columns.T, expected)


def test_coverage_of_a_thin_line_does_not_vanish():
    line = _mask(64, 64, (31, 0, 32, 64))
    coverage = mask_coverage(line[None], (8, 8))
    assert 0 < coverage.max() < 1
    assert coverage.sum().item() == pytest.approx(1.0, rel=0.05)  # 64 of 64 * 64 pixels
    assert mask_coverage(torch.zeros(0, 4, 4, dtype=torch.bool), (2, 2)).shape == (0, 2, 2)


def _columns(*ranges):
    masks = torch.zeros(len(ranges), 2, 10, dtype=torch.bool)
    for mask, (left, right) in zip(masks, ranges):
        mask[:, left:right] = True
    return masks


def test_the_better_of_two_overlapping_masks_stays_in_score_order():
    masks = _columns((0, 4), (0, 5), (6, 9))
    scores = torch.tensor([0.6, 0.5, 0.9])
    assert mask_nms(masks, scores, 0.7).tolist() == [2, 0]


def test_an_iou_equal_to_the_threshold_survives():
    masks = _columns((0, 4), (0, 5))  # IoU 0.8
    assert mask_nms(masks, torch.tensor([0.9, 0.8]), 0.8).tolist() == [0, 1]
    assert mask_nms(masks, torch.tensor([0.9, 0.8]), 0.79).tolist() == [0]


def test_a_suppressed_mask_suppresses_nothing():
    masks = _columns((0, 4), (1, 5), (2, 6))  # neighbours 0.6, ends 1/3
    assert mask_nms(masks, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


def test_classes_protect_each_other():
    masks = _columns((0, 4), (0, 4), (0, 4))
    scores = torch.tensor([0.1, 0.2, 0.3])
    assert mask_nms(masks, scores, 0.5, torch.tensor([1, 2, 1])).tolist() == [2, 1]


def test_ties_keep_the_input_order_and_empty_masks_stay():
    masks = _columns((0, 0), (0, 0), (0, 4))
    assert mask_nms(masks, torch.ones(3), 0.5).tolist() == [0, 1, 2]


def test_no_masks():
    assert mask_nms(torch.zeros(0, 2, 10, dtype=torch.bool), torch.zeros(0), 0.5).tolist() == []
