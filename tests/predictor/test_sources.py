import threading

import pytest

from rose_d2.predictor.sources import read_ahead


def test_items_are_made_in_order_in_one_other_thread_and_only_so_many_ahead():
    made, threads = [], set()

    def make():
        for number in range(20):
            made.append(number)
            threads.add(threading.get_ident())
            yield number

    taken = []
    for number in read_ahead(make(), 3):
        assert len(made) <= number + 1 + 3 + 1, "the last may just be made"
        taken.append(number)
    assert taken == list(range(20))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_an_error_comes_in_its_place():
    def make():
        yield "first"
        raise OSError("the disk is gone")

    items = read_ahead(make(), 4)
    assert next(items) == "first"
    with pytest.raises(OSError, match="gone"):
        next(items)


def test_who_stops_early_leaves_no_thread():
    before = threading.active_count()
    items = read_ahead(iter(range(100)), 2)
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before


def test_nothing_gives_nothing():
    assert list(read_ahead(iter(()), 2)) == []
