import torch

from rose_d2.layers.masks import mask_nms


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
