import json
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn

from rose_d2.engine import watchdog
from rose_d2.engine.watchdog import Heartbeat, WatchdogHook, describe_stall, locate, ranks_behind

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


def beat(rank, iteration=5, position=3, **entries):
    return Heartbeat(rank, f"node{rank // 2}", 100 + rank, iteration, position, **entries)


def test_the_rank_that_is_least_far_is_behind():
    assert ranks_behind([beat(0), beat(1, position=2), beat(2)], set()) == [1]
    assert ranks_behind([beat(0, position=9), beat(1, iteration=6, position=1)], set()) == [0]
    assert ranks_behind([beat(0), beat(1, position=2), beat(2, position=2)], set()) == [1, 2]


def test_among_equals_the_one_that_does_not_wait_is_behind():
    beats = [beat(0, is_waiting=True), beat(1), beat(2, is_waiting=True)]
    assert ranks_behind(beats, set()) == [1]
    # Who waits and is less far is behind all the same.
    assert ranks_behind([beat(0), beat(1, position=1, is_waiting=True)], set()) == [1]


def test_a_lifeless_rank_is_behind_whatever_it_said_last():
    assert ranks_behind([beat(0), beat(1, position=9)], {1}) == [1]


def test_message_names_rank_machine_activity_and_place():
    slow = beat(3, position=1, activity="waiting for data", idle_seconds=61.2, where="a.py:1 in f")
    message = describe_stall([beat(0), beat(1), beat(2), slow], set(), 4, 60.4)
    assert message == (
        "No progress for 60 s. Stalled: rank 3 (process 103 on node1) in iteration 5, waiting for "
        "data for 61 s, at a.py:1 in f. Ranks that wait for it: 3."
    )


def test_message_of_ranks_that_are_silent_or_never_started():
    message = describe_stall([beat(0), beat(2)], {1, 2}, 3, 60)
    assert "rank 1 has not started training" in message
    assert "rank 2 gives no sign of life, last (process 102 on node1) in iteration 5" in message


def test_message_if_nobody_is_behind():
    beats = [beat(0, is_waiting=True), beat(1, is_waiting=True)]
    assert "No rank is behind the others" in describe_stall(beats, set(), 2, 60)


def test_message_of_a_single_process():
    message = describe_stall([beat(0, activity="in a forward pass")], set(), 1, 60)
    assert "Stalled: rank 0" in message and "in a forward pass" in message
    assert "wait" not in message


def test_a_thread_is_located():
    started, ended = threading.Event(), threading.Event()

    def stands_here():
        started.set()
        ended.wait()

    thread = threading.Thread(target=stands_here)
    thread.start()
    started.wait()
    where, is_waiting = locate(sys._current_frames()[thread.ident])
    ended.set()
    thread.join()
    assert "threading.py" in where and " in wait" in where
    assert not is_waiting
