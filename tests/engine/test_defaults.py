import argparse
import contextlib
import json
import logging
import multiprocessing
import os

import pytest
import torch
from safetensors.torch import load_file
from toy_training import ToyTrainer, seed_all, toy_config

from rose_d2.engine import trainer as defaults


class Stopped(Exception):
    """Stands for a killed process."""


def train(cfg, *, resume=False, stop_after=None, seed=None):
    """Train; returns iteration -> losses. `stop_after` raises in that iteration."""
    seed_all(cfg.SEED if seed is None else seed)
    trainer = ToyTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    curve = {}
    run_step = trainer.run_step

    def recorded_step():
        if trainer.iter == stop_after:
            raise Stopped
        run_step()
        latest = trainer.storage.latest()
        curve[trainer.iter] = {name: latest[name][0] for name in ("loss_text", "loss_mask_dice")}
        curve[trainer.iter]["lr"] = trainer.optimizer.param_groups[0]["lr"]

    trainer.run_step = recorded_step
    with contextlib.suppress(Stopped):
        trainer.train()
    return curve


def final_weights(output_dir):
    return load_file(output_dir / "model_final" / "model.safetensors")


def test_resume_continues_the_same_curve(tmp_path):
    opts = ("SOLVER.ACCUMULATION_STEPS", 2, "TEST.EVAL_PERIOD", 5)
    whole = train(toy_config(tmp_path / "whole", *opts))
    cfg = toy_config(tmp_path / "stopped", *opts)
    first = train(cfg, stop_after=7)
    # Another seed: what the resumed process draws while starting must not matter.
    rest = train(cfg, resume=True, seed=99)
    assert sorted(first) == list(range(7)) and sorted(rest) == list(range(5, 12))
    assert first | rest == whole
    for name, tensor in final_weights(tmp_path / "whole").items():
        assert torch.equal(final_weights(tmp_path / "stopped")[name], tensor), name


def test_evaluation_does_not_change_the_curve(tmp_path):
    without = train(toy_config(tmp_path / "without"))
    often = train(toy_config(tmp_path / "often", "TEST.EVAL_PERIOD", 2))
    assert often == without
    assert without[11] != without[10]


def test_a_second_start_without_resume_begins_anew(tmp_path):
    cfg = toy_config(tmp_path)
    assert train(cfg) == train(cfg)


def test_metrics_and_checkpoints_are_written(tmp_path):
    train(toy_config(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.CHECKPOINT_KEEP", 2))
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    by_iteration = {}
    for row in rows:
        by_iteration.setdefault(row["iteration"], {}).update(row)
    assert {"loss_text", "total_loss", "grad_norm", "lr", "data_time"} <= set(by_iteration[4])
    assert by_iteration[12]["toy/metric"] == 1.0
    names = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert names == ["model_0000008", "model_0000011", "model_final"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final"
    assert list(tmp_path.glob("events.out.tfevents*"))


@pytest.fixture
def plain_logging():
    """Takes back detectron2's logging set-up, which hides messages from pytest."""
    loggers = [logging.getLogger(name) for name in ("rose_d2", "detectron2", "fvcore")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def make_args(tmp_path, *opts, resume=False):
    config_file = tmp_path / "toy.yaml"
    config_file.write_text("MODEL: {META_ARCHITECTURE: ToyROSE}\n")
    return argparse.Namespace(
        config_file=str(config_file),
        opts=["OUTPUT_DIR", str(tmp_path / "out"), *opts],
        resume=resume,
        eval_only=False,
    )


def test_setup_takes_the_cpu_where_there_is_no_gpu(tmp_path, monkeypatch, plain_logging):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = defaults.setup(make_args(tmp_path, "MODEL.DEVICE", "cuda"))
    assert cfg.MODEL.DEVICE == "cpu" and cfg.is_frozen()


def test_processes_share_cores_and_start_workers_cheaply(tmp_path, monkeypatch, plain_logging):
    threads, method = torch.get_num_threads(), multiprocessing.get_start_method()
    monkeypatch.setattr(defaults.comm, "get_local_size", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    try:
        multiprocessing.set_start_method("spawn", force=True)
        defaults.setup(make_args(tmp_path, "MODEL.DEVICE", "cpu"))
        assert torch.get_num_threads() == 3
        assert multiprocessing.get_start_method() == method
    finally:
        torch.set_num_threads(threads)
        multiprocessing.set_start_method(method, force=True)


def test_setup_draws_a_seed_once_per_run(tmp_path, plain_logging):
    drawn = defaults.setup(make_args(tmp_path, "SEED", "-1")).SEED
    assert drawn >= 0
    assert drawn == defaults.setup(make_args(tmp_path, "SEED", "-1", resume=True)).SEED
    assert defaults.setup(make_args(tmp_path, "SEED", "5")).SEED == 5


def test_training_refuses_an_unknown_test_dataset_at_once(tmp_path):
    with pytest.raises(ValueError, match="'nothing', which is not registered"):
        ToyTrainer(toy_config(tmp_path, "DATASETS.TEST", ("nothing",)))
