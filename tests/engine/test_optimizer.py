import pytest
import torch
from torch import nn
from toy_training import ToyROSE, toy_config

from rose_d2.engine.optimizer import (
    build_lr_scheduler,
    build_optimizer,
    parameter_groups,
    warmup_decay_factor,
)


def test_schedule_is_deepspeeds_warmup_decay(tmp_path):
    cfg = toy_config(tmp_path, "SOLVER.MAX_ITER", 10, "SOLVER.WARMUP_ITERS", 4)
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.01}])
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    # Measured with DeepSpeed 0.19.8, total_num_steps 10, warmup_num_steps 4, type linear.
    expected = [0, 0.0025, 0.005, 0.0075, 0.01, 1 / 120, 1 / 150, 0.005, 1 / 300, 1 / 600, 0]
    assert rates == pytest.approx(expected)


def test_schedule_stays_at_zero_after_the_end_and_warms_up_for_two_steps_at_least():
    assert warmup_decay_factor(11, warmup_iters=4, max_iter=10) == 0
    assert warmup_decay_factor(1, warmup_iters=0, max_iter=10) == 0.5


def test_warmup_longer_than_the_run_warns(tmp_path, caplog):
    cfg = toy_config(tmp_path, "SOLVER.MAX_ITER", 3, "SOLVER.WARMUP_ITERS", 4)
    build_lr_scheduler(cfg, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
    assert "never reaches" in caplog.text


def test_each_part_has_its_rate_and_only_matrices_decay():
    model = ToyROSE()
    groups = parameter_groups(
        model, base_lr=0.1, weight_decay=0.01, lr_multipliers={"embed_tokens": 0.5}
    )
    described = {g["name"]: (len(g["params"]), g["lr"], g["weight_decay"]) for g in groups}
    assert described == {
        "heads/no_decay": (3, 0.1, 0.0),
        "heads/decay": (1, 0.1, 0.01),
        # Tied to lm_head, so it is in the optimizer once; an embedding, so it does not decay.
        "embed_tokens/no_decay": (1, 0.05, 0.0),
    }


def test_position_embeddings_do_not_decay():
    model = nn.Module()
    model.pos_embed = nn.Parameter(torch.zeros(1, 2, 2, 3))
    model.trainable_parts = lambda: {"heads": list(model.named_parameters())}
    (group,) = parameter_groups(model, base_lr=0.1, weight_decay=0.01, lr_multipliers={})
    assert group["weight_decay"] == 0


def test_rates_come_from_the_config(tmp_path):
    cfg = toy_config(tmp_path, "SOLVER.LR_MULTIPLIER.EMBED_TOKENS", 0.1, "SOLVER.BASE_LR", 0.2)
    rates = {g["name"]: g["lr"] for g in build_optimizer(cfg, ToyROSE()).param_groups}
    assert rates["embed_tokens/no_decay"] == pytest.approx(0.02)
    assert rates["heads/decay"] == pytest.approx(0.2)


def test_parameter_without_a_part_is_refused():
    model = ToyROSE()
    model.frozen.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"frozen\.weight"):
        parameter_groups(model, base_lr=0.1, weight_decay=0.0, lr_multipliers={})


def test_nothing_to_train_is_refused():
    model = ToyROSE().requires_grad_(False)
    model.trainable_parts = dict
    with pytest.raises(ValueError, match="No parameter trains"):
        parameter_groups(model, base_lr=0.1, weight_decay=0.0, lr_multipliers={})
