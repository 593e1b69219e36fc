"""Starting values of a model without pretraining."""

import torch

from rose_d2.modeling.backbone.llava_builders import sine_cosine_positions


def test_inner_products_depend_on_the_offset_only():
    positions = sine_cosine_positions(5, 16)
    assert positions.shape == (25, 16)
    products = positions @ positions.T
    # One step right, one step down, and a knight's move, from two places each.
    torch.testing.assert_close(products[0, 1], products[12, 13])
    torch.testing.assert_close(products[0, 5], products[12, 17])
    torch.testing.assert_close(products[0, 7], products[12, 19])
    assert products[12].argmax() == 12
