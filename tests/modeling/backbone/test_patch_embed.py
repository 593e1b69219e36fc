"""The widened patch embedding."""

import pytest
import torch
from torch import nn

from rose_d2.modeling.backbone.llava_builders import widen_patch_embedding


def test_fourth_channel_changes_nothing_at_first_and_can_learn():
    torch.manual_seed(0)
    original = nn.Conv2d(3, 5, 14, stride=14)
    widened = widen_patch_embedding(original)
    image = torch.randn(2, 3, 28, 28)
    for mask in (torch.zeros(2, 1, 28, 28), torch.ones(2, 1, 28, 28)):
        torch.testing.assert_close(widened(torch.cat([image, mask], 1)), original(image))
    widened(torch.cat([image, torch.ones(2, 1, 28, 28)], 1)).sum().backward()
    assert widened.weight.grad[:, 3].abs().min() > 0


def test_widening_twice_is_refused():
    with pytest.raises(ValueError, match="got 4"):
        widen_patch_embedding(widen_patch_embedding(nn.Conv2d(3, 5, 14, stride=14)))
