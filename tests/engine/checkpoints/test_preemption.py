import logging
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from toy_training import ToyTrainer, seed_all, toy_config

from rose_d2.engine import preemption
from rose_d2.engine.preemption import PREEMPTED_STATUS, Preempted, termination_forwarded


@pytest.fixture(autouse=True)
def handler_of_before():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    preemption.termination_requested.clear()


class TerminatedTrainer(ToyTrainer):
    """Sends itself SIGTERM in one step, and counts its evaluations."""

    stop_in = -1
    evaluations = 0

    def run_step(self):
        super().run_step()
        if self.iter == self.stop_in:
            os.kill(os.getpid(), signal.SIGTERM)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        cls.evaluations += 1
        return super().test(cfg, model, evaluators)


def train(cfg, stop_in=-1, resume=False):
    """Train; returns the trainer class, with its count."""
    trainer_class = type("Trainer", (TerminatedTrainer,), {"stop_in": stop_in, "evaluations": 0})
    seed_all(cfg.SEED)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer_class


def folders(output_dir):
    return sorted(path.name for path in output_dir.iterdir() if path.is_dir())


def test_sigterm_saves_after_its_step_and_the_resumed_run_ends_the_same(tmp_path, caplog):
    cfg = toy_config(tmp_path / "stopped")
    with pytest.raises(Preempted) as error:
        train(cfg, stop_in=6)
    assert error.value.code == PREEMPTED_STATUS == 75
    assert folders(tmp_path / "stopped") == ["model_0000004", "model_0000006"]
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000006"
    (message,) = [r.getMessage() for r in caplog.records if "SIGTERM" in r.getMessage()]
    assert "iteration 6 is saved in" in message and "status is 75" in message
    train(cfg, resume=True)
    train(toy_config(tmp_path / "whole"))
    stopped, whole = (
        load_file(tmp_path / name / "model_final/model.safetensors")
        for name in ("stopped", "whole")
    )
    for name, tensor in whole.items():
        assert torch.equal(stopped[name], tensor), name


def test_a_step_that_was_saved_anyway_is_not_saved_twice(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(Preempted):
        train(toy_config(tmp_path), stop_in=4)
    assert folders(tmp_path) == ["model_0000004"]
    assert caplog.text.count("Saving checkpoint") == 1


def test_in_the_last_step_evaluation_is_left_to_the_resumed_run(tmp_path):
    cfg = toy_config(tmp_path)
    trainer_class = type("Trainer", (TerminatedTrainer,), {"stop_in": 11, "evaluations": 0})
    with pytest.raises(Preempted):
        trainer_class(cfg).train()
    assert trainer_class.evaluations == 0
    assert folders(tmp_path)[-1] == "model_final"
    assert train(cfg, resume=True).evaluations == 1


def test_no_evaluation_in_the_step_that_is_stopped(tmp_path):
    cfg = toy_config(tmp_path, "TEST.EVAL_PERIOD", 4)
    trainer_class = type("Trainer", (TerminatedTrainer,), {"stop_in": 7, "evaluations": 0})
    with pytest.raises(Preempted):
        trainer_class(cfg).train()
    assert trainer_class.evaluations == 1  # after four steps


def test_after_training_the_handler_is_the_one_of_before(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(toy_config(tmp_path))
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_process_of_several_is_enough(tmp_path, monkeypatch):
    # Another rank got the signal.
    others = SimpleNamespace(all_gather=lambda asked: [asked, True], is_main_process=lambda: True)
    monkeypatch.setattr(preemption, "comm", others)
    with pytest.raises(Preempted):
        train(toy_config(tmp_path))
    assert folders(tmp_path) == ["model_0000000"]


def work(ready, handler):
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)
    ready.set()
    time.sleep(60)


def start_work(handler):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=work, args=(ready, handler))
    process.start()
    ready.wait()
    return process


def test_a_launcher_forwards_the_signal_and_goes_on():
    before = signal.getsignal(signal.SIGTERM)
    with termination_forwarded():
        training = start_work(lambda *args: os._exit(7))
        starting = start_work(None)
        os.kill(os.getpid(), signal.SIGTERM)
        training.join(), starting.join()
    # One that cannot save yet ends as it would have without a launcher.
    assert (training.exitcode, starting.exitcode) == (7, -signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
