"""Masks that are drawn when they are looked at."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Instances

from rose_d2.layers import logit_masks
from rose_d2.layers.lazy_tensor import LazyTensor
from rose_d2.layers.logit_masks import LogitMasks
from rose_d2.layers.masks import masks_to_boxes, resize_lines

SIZE = (37, 50)


@pytest.fixture
def logits():
    """Noise, nothing, everything, and one cell in a corner."""
    masks = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    masks[1], masks[2], masks[3] = -1, 1, -1
    masks[3, 7, 0] = 3
    return masks


@pytest.fixture
def masks(logits):
    return LogitMasks(logits, *(resize_lines(torch.eye(8), side).T for side in SIZE))


@pytest.fixture
def expected(logits):
    """What PyTorch's own upscaling draws."""
    full = F.interpolate(logits[:, None], SIZE, mode="bilinear", align_corners=False)[:, 0]
    return full > 0


def test_they_are_drawn_as_bilinear_upscaling_draws_them(masks, expected):
    assert masks.shape == (4, *SIZE) and masks.dtype == torch.bool
    assert torch.equal(masks.tensor, expected)
    assert torch.equal(torch.stack(list(masks)), expected)
    assert torch.equal(masks.whole() > 0, expected)
    assert torch.equal(masks.union(), expected.any(dim=0))
    assert torch.equal(masks.boxes().tensor, masks_to_boxes(expected).tensor)


def test_full_size_logits_are_drawn_as_they_are(logits):
    masks = LogitMasks(logits)
    assert masks.image_size == (8, 8)
    assert torch.equal(masks.tensor, logits > 0)
    assert torch.equal(masks.boxes().tensor, masks_to_boxes(logits > 0).tensor)


def test_only_what_positive_logits_reach_is_drawn(masks):
    sizes = [[logits.numel() for _, logits in masks.windows(index)] for index in range(4)]
    assert sizes[1] == []
    assert sizes[2] == [37 * 50]
    assert sum(sizes[3]) < 37 * 50 / 16


def test_large_masks_are_drawn_in_stripes(masks, expected, monkeypatch):
    monkeypatch.setattr(logit_masks, "_PIXELS_AT_ONCE", 200)
    stripes = [logits.numel() for _, logits in masks.windows(2)]
    assert len(stripes) == 10 and max(stripes) == 200
    assert torch.equal(masks.tensor, expected)
    assert torch.equal(masks.boxes().tensor, masks_to_boxes(expected).tensor)


def test_indexing_is_that_of_a_field_of_instances(masks, expected):
    assert torch.equal(masks[3], expected[3])
    assert torch.equal(masks[torch.tensor(0)], expected[0])
    assert torch.equal(masks[0, 3:9], expected[0, 3:9])
    chosen = Instances(SIZE, pred_masks=masks)[torch.tensor([True, False, False, True])]
    assert isinstance(chosen.pred_masks, LogitMasks)
    assert torch.equal(chosen.pred_masks.tensor, expected[[0, 3]])
    assert torch.equal(masks[1:].tensor, expected[1:])
    assert masks[:0].tensor.shape == (0, *SIZE) and masks[:0].boxes().tensor.shape == (0, 4)


def test_what_takes_a_tensor_gets_one(masks, expected):
    assert torch.equal(torch.stack([masks.sum(dim=(1, 2))])[0], expected.sum(dim=(1, 2)))
    assert torch.equal(expected & masks, expected) and torch.equal(masks & ~masks, expected & False)
    assert torch.equal(masks * 2 > 1, expected) and (masks == expected).all()
    assert torch.equal(torch.cat([masks, expected]), torch.cat([expected, expected]))
    assert (np.asarray(masks) == expected.numpy()).all()
    assert np.asarray(masks, dtype=np.uint8).dtype == np.uint8
    assert (masks.cpu().numpy() == expected.numpy()).all()
    with pytest.raises(AttributeError):
        masks.no_such_attribute  # noqa: B018


def test_copies_and_moves_draw_the_same(masks, expected):
    for same in (copy.deepcopy(masks), pickle.loads(pickle.dumps(masks)), masks.to("cpu")):
        assert isinstance(same, LogitMasks)
        assert torch.equal(same.tensor, expected)
    assert masks.to("meta").device.type == "meta"


def test_half_precision_draws_the_same_outline(masks):
    halved = LogitMasks(masks.logits.bfloat16(), masks.rows, masks.columns)
    rounded = LogitMasks(masks.logits.bfloat16().float(), masks.rows, masks.columns)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(halved.tensor, rounded.tensor)


def test_a_tensor_that_cannot_be_made_says_why_once():
    class Broken(LazyTensor):
        @property
        def tensor(self):
            return None.missing

    with pytest.raises(AttributeError, match="tensor"):
        Broken().sum()


def test_a_loop_makes_the_tensor_once():
    class Counted(LazyTensor):
        made = 0

        @property
        def tensor(self):
            self.made += 1
            return torch.arange(3)

    counted = Counted()
    assert [int(value) for value in counted] == [0, 1, 2] and counted.made == 1
