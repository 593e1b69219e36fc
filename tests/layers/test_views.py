"""The two views of one image."""

import numpy as np
import pytest
import torch

from rose_d2.layers.views import longest_side_view, model_views, square_view


def _half_red(height, width):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2] = (255, 0, 0)
    return pixels


def test_square_view_ignores_the_aspect_ratio():
    view = square_view(_half_red(40, 60), 10)
    assert view.shape == (10, 10, 3)
    assert (view[:, :5, 0] == 255).all()
    assert (view[:, 5:, 0] == 0).all()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((240, 320), (192, 256)),
        ((320, 240), (256, 192)),
        ((100, 3), (256, 8)),
        ((3, 2000), (1, 256)),
    ],
)
def test_longest_side_view_keeps_the_aspect_ratio(shape, expected):
    view = longest_side_view(np.zeros((*shape, 3), dtype=np.uint8), 256)
    assert view.shape == (*expected, 3)


def test_model_views_are_channel_first_tensors():
    image, sam_image = model_views(_half_red(40, 80), 14, 32)
    assert image.shape == (3, 14, 14)
    assert sam_image.shape == (3, 16, 32)
    assert image.dtype == sam_image.dtype == torch.uint8
    assert image[0, :, :7].min() == 255
    assert image[1:].max() == 0
