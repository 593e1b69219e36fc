import pytest
import torch
from torch import nn

from rose_d2.profiling.steps import count_flops


def test_a_matrix_product_counts_two_per_multiply_add():
    count = count_flops(lambda: torch.randn(3, 5) @ torch.randn(5, 7))
    assert count.forward == count.total == 2 * 3 * 5 * 7
    assert count.backward == 0
    assert count.operators == {"aten.mm": 210}


def test_meta_tensors_count_like_real_ones():
    def layer(device):
        linear = nn.Linear(5, 7, device=device)
        return count_flops(lambda: linear(torch.zeros(3, 5, device=device)).sum(), backward=True)

    assert layer("meta") == layer("cpu")
    assert layer("cpu").forward == 2 * 3 * 5 * 7


def test_a_frozen_weight_has_no_gradient_to_count():
    inputs = torch.randn(3, 5, requires_grad=True)
    linear = nn.Linear(5, 7)
    both = count_flops(lambda: {"a": linear(inputs).sum(), "b": inputs.sum()}, backward=True)
    assert both.backward == 2 * both.forward
    linear.requires_grad_(False)
    assert count_flops(lambda: linear(inputs).sum(), backward=True).backward == 210


def test_attention_counts_every_key():
    query = torch.randn(1, 2, 6, 4)
    count = count_flops(
        lambda: nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    )
    assert count.forward == 2 * (2 * 2 * 6 * 6 * 4)


def test_only_losses_can_be_differentiated():
    with pytest.raises(TypeError, match="returned list; to count the backward"):
        count_flops(lambda: [1.0], backward=True)
