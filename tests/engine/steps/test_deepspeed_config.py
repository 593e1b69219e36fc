import json

import pytest
from toy_training import toy_config

from rose_d2.config.read import read_config
from rose_d2.engine.deepspeed_engine import deepspeed_config


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
