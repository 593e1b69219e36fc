import json
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn

from rose_d2.engine import watchdog
from rose_d2.engine.watchdog import Heartbeat, WatchdogHook

LIMIT = 0.4


def wait_for(text, caplog):
    end = time.monotonic() + 60
    while text not in caplog.text and time.monotonic() < end:
        time.sleep(0.02)
    return text in caplog.text


@contextmanager
def watched(data, *, store=None):
    """A hook in its first step over the data; gives the engine and the model."""
    engine = SimpleNamespace(data_iterator=iter(data))
    original, model = engine.data_iterator, nn.Linear(2, 2)
    hook = WatchdogHook(engine=engine, model=model, seconds=LIMIT, store=store)
    hook.trainer = SimpleNamespace(iter=8, start_iter=8)
    hook.before_train()
    hook.before_step()
    try:
        yield SimpleNamespace(engine=engine, model=model, hook=hook)
    finally:
        hook.after_train()
    assert engine.data_iterator is original
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_slow_data_are_reported_once_and_so_is_the_end_of_it(caplog):
    def slow():
        wait_for("Stalled", caplog)
        yield 1

    with watched(slow()) as run:
        assert next(run.engine.data_iterator) == 1
        assert wait_for("The run goes on, in iteration 8", caplog)
    assert "Stalled: rank 0" in caplog.text
    assert "in iteration 8, waiting for data" in caplog.text
    assert "test_watchdog.py" in caplog.text and "in wait_for" in caplog.text


def test_what_a_step_does_is_known(caplog):
    with watched([1]) as run:
        next(run.engine.data_iterator)
        run.model(torch.ones(2))
        assert wait_for("in the backward pass or the update for", caplog)


def test_an_evaluation_that_makes_progress_is_no_stall(caplog):
    caplog.set_level("INFO")
    with watched([]) as run:
        run.hook.after_step()
        end = time.monotonic() + 4 * LIMIT
        while time.monotonic() < end:
            run.model(torch.ones(2))
            time.sleep(0.01)
        assert "No progress" not in caplog.text
        assert wait_for("evaluating, saving or logging for", caplog)


def test_a_process_that_sends_nothing_is_named(caplog, monkeypatch):
    monkeypatch.setattr(watchdog.comm, "get_world_size", lambda: 3)
    store = dist.HashStore()
    stopped = Heartbeat(1, "node7", 4711, iteration=8, position=99, activity="in a forward pass")
    store.set("rose_d2/heartbeat/1", json.dumps(asdict(stopped)))
    with watched([], store=store):
        assert wait_for("Stalled", caplog)
    assert "rank 1 gives no sign of life, last (process 4711 on node7)" in caplog.text
    assert "rank 2 has not started training" in caplog.text


def test_a_store_that_is_gone_ends_the_watch_quietly(caplog):
    class GoneStore:
        def set(self, key, value):
            raise RuntimeError("Connection reset by peer")

    with watched([], store=GoneStore()) as run:
        run.hook._thread.join(timeout=30)
        assert not run.hook._thread.is_alive()
    assert caplog.text == ""
