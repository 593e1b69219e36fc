import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rose_d2.engine.metrics import StepFlops, measured_peak


class TwoLayers(nn.Module):
    """Products of (5, 8) with (8, 16) and of (5, 16) with (16, 4)."""

    def __init__(self, *, checkpointed=False, reentrant=False, frozen=False):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 4)
        self.first.requires_grad_(not frozen)
        self.checkpointed = checkpointed
        self.reentrant = reentrant

    def forward(self, x):
        if self.checkpointed:
            x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        else:
            x = self.block(x)
        return self.second(x)

    def block(self, x):
        return self.first(x).tanh()


FIRST, SECOND = 2 * 5 * 8 * 16, 2 * 5 * 16 * 4


def count(model, x):
    counter = StepFlops(model)
    with counter:
        model(x).sum().backward()
    return counter


def test_forward_and_backward_are_those_of_the_matrix_products():
    counter = count(TwoLayers(), torch.ones(5, 8))
    # The input needs no gradient, so the first layer has only one product in the backward pass.
    assert (counter.forward, counter.backward) == (FIRST + SECOND, FIRST + 2 * SECOND)
    assert counter.recomputed == 0
    assert counter.model_flops == 2 * FIRST + 3 * SECOND


def test_frozen_weights_cost_no_gradient():
    counter = count(TwoLayers(frozen=True), torch.ones(5, 8, requires_grad=True))
    assert counter.backward == FIRST + 2 * SECOND


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_is_counted_apart(reentrant):
    model = TwoLayers(checkpointed=True, reentrant=reentrant)
    counter = count(model, torch.ones(5, 8, requires_grad=True))
    assert counter.recomputed == FIRST
    assert counter.model_flops == 3 * (FIRST + SECOND)


class ProductFunction(torch.autograd.Function):
    """A matrix product whose operators see gradients switched off, as in DeepSpeed's ZeRO-3."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


class CustomLayer(nn.Linear):
    def forward(self, x):
        return ProductFunction.apply(x, self.weight)


def test_recomputation_of_a_custom_function_is_counted_apart():
    model = TwoLayers(checkpointed=True)
    model.first = CustomLayer(8, 16, bias=False)
    counter = count(model, torch.ones(5, 8, requires_grad=True))
    assert counter.recomputed == FIRST
    assert counter.model_flops == 3 * (FIRST + SECOND)


def test_several_micro_batches_add_up():
    model = TwoLayers()
    with StepFlops(model) as counter:
        for _ in range(3):
            model(torch.ones(5, 8)).sum().backward()
    assert counter.model_flops == 3 * (2 * FIRST + 3 * SECOND)


def test_nothing_is_left_of_the_counter():
    model = TwoLayers()
    counter = count(model, torch.ones(5, 8))
    flops = counter.model_flops
    model(torch.ones(5, 8)).sum().backward()
    assert counter.model_flops == flops
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_peak_is_a_rate_and_draws_no_random_numbers():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    peak = measured_peak(torch.device("cpu"), torch.float32)
    # Any processor lies between 0.1 GFLOP/s and 1 PFLOP/s.
    assert 1e8 < peak < 1e15
    assert torch.equal(torch.get_rng_state(), state)
    assert measured_peak(torch.device("cpu"), torch.float32) == peak
