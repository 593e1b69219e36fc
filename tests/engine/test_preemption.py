import itertools
import logging
import multiprocessing
import os
import random
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_training import ToyTrainer, seed_all, toy_config

from rose_d2.engine import preemption
from rose_d2.engine import preemption as module
from rose_d2.engine.preemption import (
    PREEMPTED_STATUS,
    DataPositionHook,
    Preempted,
    RandomStateHook,
    capture_random_state,
    preserved_random_state,
    restore_random_state,
    termination_forwarded,
)


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
    # Another rank got the signal, once training had begun.
    answers = itertools.chain([False], itertools.repeat(True))
    others = SimpleNamespace(
        all_gather=lambda asked: [asked, next(answers)], is_main_process=lambda: True
    )
    monkeypatch.setattr(preemption, "comm", others)
    with pytest.raises(Preempted):
        train(toy_config(tmp_path))
    assert folders(tmp_path) == ["model_0000000"]


def test_before_training_there_is_nothing_to_save(tmp_path, monkeypatch):
    preemption.stop_before_training()
    with pytest.raises(Preempted):
        os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(preemption.comm, "get_world_size", lambda: 2)
    os.kill(os.getpid(), signal.SIGTERM)  # the others may wait for this process
    monkeypatch.undo()
    with pytest.raises(Preempted):
        train(toy_config(tmp_path))
    assert folders(tmp_path) == []


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


def draw():
    return random.gauss(0, 1), np.random.randn(), torch.rand(1).item()


def test_state_survives_a_weights_only_file(tmp_path):
    random.gauss(0, 1), np.random.randn()  # both keep a second value for the next call
    torch.save(capture_random_state(), tmp_path / "state.pth")
    expected = [draw() for _ in range(3)]
    restore_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_preserved_even_after_an_error():
    state = capture_random_state()
    expected = draw()
    restore_random_state(state)
    try:
        with preserved_random_state():
            draw()
            raise KeyError
    except KeyError:
        pass
    assert draw() == expected


@pytest.fixture
def as_rank(monkeypatch):
    """Pretend to be a process of several."""

    def become(rank, world_size):
        monkeypatch.setattr(module.comm, "get_rank", lambda: rank)
        monkeypatch.setattr(module.comm, "get_world_size", lambda: world_size)

    return become


def state_after(seed):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    return capture_random_state()


def resumed_draw(states):
    """What a process draws first after resuming, whatever it drew before."""
    torch.manual_seed(random.randrange(100))
    hook = RandomStateHook()
    hook.load_state_dict({"ranks": states})
    hook.before_train()
    return draw()


def test_as_many_processes_go_on_with_their_own_numbers(as_rank, caplog):
    states = [state_after(1), state_after(2)]
    expected = draw()
    as_rank(1, 2)
    assert resumed_draw(states) == expected and not caplog.text


def test_fewer_processes_go_on_and_warn(as_rank, caplog):
    states = [state_after(1), state_after(2)]
    restore_random_state(states[0])
    expected = draw()
    as_rank(0, 1)
    assert resumed_draw(states) == expected
    assert "2 processes, this run has 1" in caplog.text


def test_more_processes_draw_numbers_of_their_own_that_can_be_repeated(as_rank):
    states = [state_after(1)]
    draws = []
    for rank in range(4):
        as_rank(rank, 4)
        draws.append(resumed_draw(states))
        assert resumed_draw(states) == draws[-1]
    for generator in zip(*draws, strict=True):
        assert len(set(generator)) == 4


def run(hook, start_iter, steps):
    """Train some steps; returns the first and the last image seen, as positions."""
    first = hook.start_of_data(start_iter) * hook._per_iteration
    for _ in range(steps):
        hook.after_step()
    return first, first + steps * hook._per_iteration - 1


def resumed(hook, images_per_iteration):
    other = DataPositionHook(images_per_iteration)
    other.load_state_dict(hook.state_dict())
    return other


def test_a_new_run_starts_with_the_first_image():
    assert run(DataPositionHook(8), 0, 3) == (0, 23)


def test_a_resumed_run_goes_on_without_a_word(caplog):
    hook = DataPositionHook(8)
    run(hook, 0, 3)
    assert run(resumed(hook, 8), 3, 2) == (24, 39)
    assert not caplog.text


@pytest.mark.parametrize(("images", "first"), [(4, 24), (16, 16), (5, 20)])
def test_with_other_batches_no_image_is_lost(caplog, images, first):
    hook = DataPositionHook(8)
    run(hook, 0, 3)
    changed = resumed(hook, images)
    assert run(changed, 3, 2) == (first, first + 2 * images - 1)
    assert "after 24 images" in caplog.text and f"{24 - first} images come again" in caplog.text
    assert changed.state_dict() == {"images": first + 2 * images}
    # And once more: the count is of images, not of iterations.
    assert run(resumed(changed, images), 5, 1)[0] == first + 2 * images


def test_a_checkpoint_without_the_number_counts_iterations():
    assert run(DataPositionHook(8), 3, 1) == (24, 31)
