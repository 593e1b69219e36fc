"""The engines against each other; the runs are those of step_engine_jobs.py."""

import json

import pytest
import torch
from scripts import run_script
from toy_training import NoDropoutROSE, toy_config

from rose_d2.config.read import read_config
from rose_d2.engine.deepspeed_engine import DeepSpeedStepEngine, deepspeed_config
from rose_d2.engine.optimizer import warmup_decay_factor

STEPS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name of a run -> its losses by step, weights and state."""
    folder = tmp_path_factory.mktemp("engines")
    run_script("tests/helpers/step_engine_jobs.py", folder, STEPS, output=folder / "output.txt")
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


def assert_same(run, expected, *, tolerance=1e-5, weight_tolerance=5e-5):
    """Losses and metrics relatively; weights absolutely, as Adam amplifies tiny gradients."""
    steps = len(run["losses"])
    for row, wanted in zip(run["losses"], expected["losses"][-steps:], strict=True):
        assert row == pytest.approx(wanted, rel=tolerance)
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(run["weights"][name], tensor, atol=weight_tolerance, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["2-zero3", "1-zero3", "2-zero1"])
def test_each_process_evaluates_on_its_own_in_mid_training(runs, run):
    answers, expected = runs[run]["half"]["scores"], runs[f"{run[0]}-torch"]["half"]["scores"]
    assert [len(of_rank) for of_rank in answers] == [1, 2][: int(run[0])]
    assert all(len(scores) for of_rank in answers for scores in of_rank)
    for of_rank, wanted in zip(answers, expected, strict=True):
        torch.testing.assert_close(of_rank, wanted, rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_follows_torch(runs, processes, stage):
    run, torch_run = runs[f"{processes}-zero{stage}"], runs[f"{processes}-torch"]
    assert_same(run, torch_run)
    # The first step has the rate 0; then the weights must have moved.
    assert torch_run["losses"][-1]["total_loss"] != torch_run["losses"][0]["total_loss"]
    assert run["state"]["scheduler"] == torch_run["state"]["scheduler"] == {"steps": STEPS}
    states, torch_states = run["state"]["optimizer"], torch_run["state"]["optimizer"]
    assert states.keys() == torch_states.keys()
    for name, state in torch_states.items():
        assert states[name]["step"] == state["step"] == STEPS
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(states[name][key], state[key], atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_equal_one_although_one_has_no_target(runs):
    assert_same(runs["2-zero3"], runs["1-torch"])
    assert_same(runs["2-torch"], runs["1-torch"])


@pytest.mark.slow
def test_learning_rate_follows_the_formula(runs):
    rates = [row["lr"] for row in runs["2-zero2"]["losses"]]
    factors = [warmup_decay_factor(n, warmup_iters=3, max_iter=60) for n in range(STEPS)]
    assert rates == pytest.approx([0.001 * factor for factor in factors])


@pytest.mark.slow
@pytest.mark.parametrize("resumed", ["2-zero3", "1-zero1", "1-torch"])
def test_state_of_stage_3_on_two_processes_resumes_anywhere(runs, resumed):
    assert len(runs[f"{resumed}-resumed"]["losses"]) == STEPS // 2
    assert_same(runs[f"{resumed}-resumed"], runs["2-zero3"])


@pytest.mark.slow
def test_nan_on_one_rank_skips_the_update_on_all_and_the_schedule_goes_on(runs):
    skipped, whole = runs["2-zero2-skipped"], runs["2-zero2"]
    assert_same(skipped, runs["2-torch-skipped"])
    assert {state["step"] for state in skipped["state"]["optimizer"].values()} == {STEPS - 1}
    assert skipped["state"]["scheduler"] == {"steps": STEPS}
    assert skipped["losses"][-1]["lr"] == whole["losses"][-1]["lr"]
    assert skipped["losses"][-1]["total_loss"] != whole["losses"][-1]["total_loss"]


@pytest.mark.slow
def test_bfloat16_resumes_from_its_float32_weights(runs):
    whole, resumed = runs["1-bf16-zero2"], runs["1-bf16-zero1-resumed"]
    name = "patch_analyzer.objectness.copies.0.layers.0.weight"
    master = whole["state"]["optimizer"][name]["master"]
    assert whole["weights"][name].dtype is torch.bfloat16
    assert not torch.equal(master, master.to(torch.bfloat16).float())
    assert_same(resumed, whole, tolerance=0.005, weight_tolerance=0.01)
    torch.testing.assert_close(
        resumed["state"]["optimizer"][name]["master"], master, atol=2e-3, rtol=0
    )


def test_weights_in_bfloat16_need_mixed_precision(tmp_path):
    model = NoDropoutROSE(None).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"\['bfloat16'\] and SOLVER\.AMP is off"):
        DeepSpeedStepEngine(toy_config(tmp_path, "SOLVER.ENGINE", "deepspeed"), model)


def config_with_json(tmp_path, settings, *opts):
    path = tmp_path / "deepspeed.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return toy_config(tmp_path, "SOLVER.DEEPSPEED.CONFIG_FILE", path, *opts)


def test_7b_recipe_is_the_papers():
    opts = ["MODEL.DEVICE", "cuda"]
    settings = deepspeed_config(read_config("configs/rose_7b.yaml", opts), world_size=8)
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_accumulation_steps"] == 10
    assert settings["gradient_clipping"] == 1.0
    assert settings["optimizer"]["type"] == "AdamW"
    assert settings["optimizer"]["params"]["lr"] == 0.003
    assert settings["scheduler"] == {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": 0.0,
            "warmup_max_lr": 0.003,
            "warmup_num_steps": 1500,
            "total_num_steps": 50000,
            "warmup_type": "linear",
        },
    }
    assert settings["bf16"]["enabled"] and not settings["fp16"]["enabled"]
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["data_types"]["grad_accum_dtype"] == "fp32"


def test_full_precision_without_clipping(tmp_path):
    settings = deepspeed_config(toy_config(tmp_path, "SOLVER.DEEPSPEED.ZERO_STAGE", 3), 2)
    assert not settings["bf16"]["enabled"] and settings["gradient_clipping"] == 0.0
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["train_micro_batch_size_per_gpu"] == 2  # 4 images, 2 processes
    assert "fused" not in settings["optimizer"]["params"]  # on the CPU


def test_json_is_merged_over_what_the_config_leaves_open(tmp_path):
    own = {
        "zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 1000, "stage": "auto"},
        "gradient_accumulation_steps": 1,
        "train_batch_size": 4,
        "wall_clock_breakdown": True,
    }
    settings = deepspeed_config(config_with_json(tmp_path, own), world_size=1)
    assert settings["zero_optimization"] == {
        "stage": 2,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_bucket_size": 1000,
    }
    assert settings["wall_clock_breakdown"] is True
    assert settings["optimizer"]["params"]["lr"] == 0.05


def test_deepspeeds_own_adam_is_not_told_of_pytorchs_options(tmp_path):
    own = {"optimizer": {"params": {"torch_adam": False}}}
    cfg = config_with_json(tmp_path, own, "MODEL.DEVICE", "cuda")
    assert "fused" not in deepspeed_config(cfg, world_size=1)["optimizer"]["params"]


def test_every_contradiction_is_listed_with_both_values(tmp_path):
    own = {
        "optimizer": {"type": "AdamW", "params": {"lr": 0.0001}},
        "scheduler": {"params": {"warmup_type": "log"}},
        "zero_optimization": {"stage": 3},
        "bfloat16": {"enabled": True},
        "train_batch_size": 99,
    }
    with pytest.raises(ValueError, match="contradicts") as error:
        deepspeed_config(config_with_json(tmp_path, own), world_size=1)
    message = str(error.value)
    for part in (
        "optimizer.params.lr is 0.0001, but SOLVER.BASE_LR makes it 0.05",
        "scheduler.params.warmup_type is 'log', but the recipe makes it 'linear'",
        "zero_optimization.stage is 3, but SOLVER.DEEPSPEED.ZERO_STAGE makes it 2",
        "bf16.enabled is True, but SOLVER.AMP makes it False",
        "train_batch_size is 99",
    ):
        assert part in message
    assert "optimizer.type" not in message


@pytest.mark.parametrize(("settings", "hint"), [("{", "not valid JSON"), ("[1]", "holds a list")])
def test_json_that_is_no_settings_is_refused(tmp_path, settings, hint):
    with pytest.raises(ValueError, match=hint):
        deepspeed_config(config_with_json(tmp_path, settings), world_size=1)


def test_missing_json_is_refused(tmp_path):
    cfg = toy_config(tmp_path, "SOLVER.DEEPSPEED.CONFIG_FILE", tmp_path / "nothing.json")
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist"):
        deepspeed_config(cfg, world_size=1)


def test_settings_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ZERO_STAGE is 4.*\(1, 2, 3\)"):
        deepspeed_config(toy_config(tmp_path, "SOLVER.DEEPSPEED.ZERO_STAGE", 4), world_size=1)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 4, which 3 processes"):
        deepspeed_config(toy_config(tmp_path), world_size=3)
