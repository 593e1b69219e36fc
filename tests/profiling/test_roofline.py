"""Work of operations whose bytes and FLOPs can be told by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from rose_d2.profiling.pretended_gpu import backward, pretended_gpu
from rose_d2.profiling.roofline import Gpu, RoofCounter, Work, report_work

# 100 FLOP a second, 10 bytes a second.
SLOW = Gpu("slow", {torch.float32: 100.0, torch.bfloat16: 400.0}, 10.0)


def work(run, *shapes, dtype=torch.float32):
    """Of a function of tensors of such shapes."""
    with pretended_gpu():
        tensors = [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
        with RoofCounter(SLOW) as counter:
            run(*tensors)
    return Work(*counter.totals)


def test_a_matrix_product_is_at_the_higher_roof():
    product = work(torch.mm, (2, 50), (50, 3))
    assert product.flops == 2 * 2 * 50 * 3 and product.operations == 1
    assert product.bytes_moved == 4 * (2 * 50 + 50 * 3 + 2 * 3)
    assert product.seconds == pytest.approx(product.bytes_moved / 10)
    assert product.bound_by_arithmetic == 0
    large = work(torch.mm, (300, 500), (500, 300))
    assert large.seconds == large.bound_by_arithmetic == pytest.approx(large.flops / 100)
    half = work(torch.mm, (300, 500), (500, 300), dtype=torch.bfloat16)
    assert half.seconds == pytest.approx(large.seconds / 4)
    assert large.intensity * 2 == half.intensity


@pytest.mark.parametrize(
    ("run", "numbers"),
    [
        (lambda x: x.view(6), 0),
        (lambda x: x[1:].transpose(0, 1), 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: torch.zeros_like(x), 6),
        (lambda x: x + 1, 12),
        (lambda x: x.add_(1), 12),
        (lambda x: x.zero_(), 6),
        (lambda x: x.copy_(x[:1]), 3 + 6),
        (lambda x: x[:1].expand(2, 3) + x, 3 + 6 + 6),
        (lambda x: torch.cat([x, x]), 12 + 12),
    ],
)
def test_bytes_are_those_read_and_written(run, numbers):
    moved = work(run, (2, 3))
    assert moved.bytes_moved == 4 * numbers and moved.flops == 0


def test_of_a_table_only_the_rows_asked_for_are_read():
    def look_up(table):
        F.embedding(torch.zeros(2, dtype=torch.long, device="cuda"), table)

    zeros = 2 * 8
    assert work(look_up, (1000, 5)).bytes_moved == zeros + 4 * (10 + 10) + zeros


def test_attention_holds_no_matrix_and_its_backward_pass_neither():
    """Two heads of width four, five queries, three keys."""
    heads = (1, 2, 5, 4), (1, 2, 3, 4), (1, 2, 3, 4)
    plain = work(F.scaled_dot_product_attention, *heads)
    assert plain.flops == 2 * (2 * 2 * 5 * 4 * 3) and plain.operations == 1
    random_state = 2 * 8
    assert plain.bytes_moved == 4 * (40 + 24 + 24 + 40) + random_state

    def masked(query, key, value):
        mask = torch.ones(1, 1, 5, 3, dtype=torch.bool, device="cuda")
        F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    assert work(masked, *heads).flops == plain.flops
    grouped = (1, 2, 5, 4), (1, 1, 3, 4), (1, 1, 3, 4)
    shared = work(lambda *h: F.scaled_dot_product_attention(*h, enable_gqa=True), *grouped)
    assert shared.flops == plain.flops

    def trained(query, key, value):
        result = F.scaled_dot_product_attention(query.requires_grad_(), key, value)
        backward(result.sum())

    assert work(trained, *heads).flops > 2 * plain.flops


def test_the_cpu_counts_nothing():
    with pretended_gpu(), RoofCounter(SLOW) as counter:
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert not counter.totals.any()
    assert math.isnan(Work(*counter.totals).intensity)


def test_a_report_adds_up():
    parts = {"one": Work(1e12, 1e9, 0.25, 0.25, 3), "two": Work(0, 3e9, 0.25, 0, 1)}
    *_, two, both, speed = report_work("a batch", parts, 4).splitlines()
    assert two.split() == ["0.000", "3.00", "0", "250.00", "0", "%", "1", "two"]
    assert both.split() == ["1.000", "4.00", "250", "500.00", "50", "%", "4", "all"]
    assert speed.strip() == "at most 8.0 images a second"
