import sys
import threading

from rose_d2.engine.watchdog import Heartbeat, describe_stall, locate, ranks_behind


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
