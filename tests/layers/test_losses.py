import numpy as np
import pytest
import torch

from rose_d2.layers.losses import (
    dice_loss,
    info_nce_loss,
    objectness_loss,
    sigmoid_bce_mask_loss,
    text_cross_entropy,
)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _bce(logits, targets):
    p = _sigmoid(logits)
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 5))
    targets = rng.uniform(size=(3, 4, 5))
    valid = np.ones((4, 5), dtype=bool)
    valid[:, 3:] = False
    return logits, targets, valid


def _tensors(*arrays):
    return [torch.as_tensor(array) for array in arrays]


def test_mask_bce_is_the_mean_over_valid_pixels(masks):
    logits, targets, valid = masks
    expected = [_bce(*pair)[valid].mean() for pair in zip(logits, targets)]
    losses = sigmoid_bce_mask_loss(*_tensors(logits, targets, valid))
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)


def test_dice_is_the_plain_formula_over_valid_pixels(masks):
    logits, targets, valid = masks
    expected = []
    for logit, target in zip(logits, targets):
        p, t = _sigmoid(logit)[valid], target[valid]
        expected.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    losses = dice_loss(*_tensors(logits, targets, valid))
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [sigmoid_bce_mask_loss, dice_loss])
def test_padding_changes_neither_mask_loss_nor_its_gradient(loss, masks):
    logits, targets, valid = _tensors(*masks)
    other = torch.where(valid, targets, 1 - targets)
    assert torch.equal(loss(logits, targets, valid), loss(logits, other, valid))
    logits = logits.clone().requires_grad_()
    loss(logits, targets, valid).sum().backward()
    assert logits.grad[:, ~valid].abs().max() == 0
    assert logits.grad[:, valid].abs().min() > 0


@pytest.mark.parametrize("loss", [sigmoid_bce_mask_loss, dice_loss])
def test_mask_losses_accept_a_valid_map_per_mask(loss, masks):
    logits, targets, valid = _tensors(*masks)
    plain = loss(logits, targets, valid)
    torch.testing.assert_close(loss(logits, targets, valid.expand(3, 4, 5)), plain)


@pytest.mark.parametrize("loss", [sigmoid_bce_mask_loss, dice_loss])
def test_mask_losses_are_finite_without_masks_or_valid_pixels(loss):
    assert loss(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4)).shape == (0,)
    nothing_valid = torch.zeros(4, 4, dtype=torch.bool)
    assert loss(torch.ones(2, 4, 4), torch.zeros(2, 4, 4), nothing_valid).tolist() == [0, 0]


@pytest.mark.parametrize("loss", [sigmoid_bce_mask_loss, dice_loss])
def test_mask_losses_vanish_for_a_confident_right_answer(loss):
    targets = torch.zeros(1, 4, 4)
    targets[:, :2] = 1
    assert loss(40 * targets - 20, targets).item() < 1e-4
    assert loss(20 - 40 * targets, targets).item() > 0.8


def test_mask_losses_compute_half_precision_in_float32():
    logits = torch.full((1, 400, 400), -3.0, dtype=torch.float16)
    loss = dice_loss(logits, torch.ones(1, 400, 400))
    assert loss.dtype == torch.float32 and torch.isfinite(loss).all()


def test_mask_losses_name_both_shapes_on_a_mismatch():
    with pytest.raises(ValueError, match=r"\(1, 4, 4\).*\(1, 8, 8\)"):
        dice_loss(torch.zeros(1, 4, 4), torch.zeros(1, 8, 8))


def test_objectness_is_plain_bce_per_patch():
    logits, targets = np.array([2.0, -1.0, 0.0]), np.array([1.0, 0.0, 1.0])
    losses = objectness_loss(torch.tensor(logits), torch.tensor([True, False, True]))
    np.testing.assert_allclose(losses.numpy(), _bce(logits, targets), rtol=1e-6)


def test_info_nce_is_a_softmax_over_cosines():
    rng = np.random.default_rng(1)
    embeddings, bank, targets = rng.normal(size=(4, 6)), rng.normal(size=(3, 6)), [2, 0, 1, 2]
    cosines = (embeddings @ bank.T) / np.outer(
        np.linalg.norm(embeddings, axis=1), np.linalg.norm(bank, axis=1)
    )
    scaled = cosines / 0.1
    expected = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(4), targets]
    losses = info_nce_loss(*_tensors(embeddings, bank), torch.tensor(targets), 0.1)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)


def test_info_nce_refuses_a_temperature_of_zero():
    with pytest.raises(ValueError, match="above 0"):
        info_nce_loss(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([0]), 0.0)


def test_text_loss_is_the_mean_over_the_tokens_of_each_item():
    rng = np.random.default_rng(2)
    logits, labels, items = rng.normal(size=(3, 5)), [3, 1, 4], [2, 2, 0]
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = [-log_probs[2, 4], 0, -(log_probs[0, 3] + log_probs[1, 1]) / 2]
    losses = text_cross_entropy(
        *_tensors(logits), torch.tensor(labels), torch.tensor(items), num_items=3
    )
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)


def test_text_loss_without_tokens_is_zero_and_keeps_the_graph():
    logits = torch.zeros(0, 4, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.long)
    losses = text_cross_entropy(logits, nothing, nothing, num_items=2)
    losses.sum().backward()
    assert losses.tolist() == [0, 0] and logits.grad.shape == (0, 4)
