import gc
import multiprocessing
import os
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch.utils.data as torchdata
from detectron2.structures import BoxMode

from rose_d2.data.build import PackedDicts


def _annotations(count):
    return [
        {
            "bbox": [0.5, 1, 2, 3],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": k,
            "segmentation": {"size": [4, 6], "counts": b"some run-length code" * 20},
        }
        for k in range(count)
    ]


@pytest.fixture
def dicts():
    """Two images, the first with three sentences that share their annotations."""
    shared, segments, own = _annotations(5), [{"id": 7, "isthing": True}], _annotations(1)
    first = {"file_name": "1.jpg", "annotations": shared, "segments_info": segments}
    return [
        *(
            {**first, "sentence": text, "sent_id": k}
            for k, text in enumerate(["a", "b", "caf\xe9"])
        ),
        {"sent_id": 3, "file_name": "2.jpg", "annotations": own, "target_indices": [0]},
        {"file_name": "3.jpg", "annotations": [], "sem_seg_file_name": None},
    ]


def test_items_equal_the_originals(dicts):
    packed = PackedDicts(dicts)
    assert len(packed) == 5
    assert list(packed) == dicts
    assert [list(packed[k]) for k in range(5)] == [list(d) for d in dicts]
    assert isinstance(packed[0]["annotations"][0]["bbox_mode"], BoxMode)


def test_indices_follow_lists(dicts):
    packed = PackedDicts(dicts)
    assert packed[-1] == dicts[-1]
    assert packed[np.int64(3)] == dicts[3]
    for index in (5, -6):
        with pytest.raises(IndexError):
            packed[index]


def test_items_are_independent(dicts):
    packed = PackedDicts(dicts)
    changed = packed[0]
    changed["annotations"][0]["bbox"][0] = 99
    changed["segments_info"].clear()
    changed["new"] = 1
    assert list(packed) == dicts
    assert packed[1]["annotations"] is not packed[1]["annotations"]


def test_the_originals_may_change_afterwards(dicts):
    packed = PackedDicts(dicts)
    dicts[0]["annotations"][0]["category_id"] = 99
    assert packed[0]["annotations"][0]["category_id"] == 0
    assert packed[1]["annotations"][0]["category_id"] == 0


def test_shared_values_are_stored_once():
    annotations = _annotations(10)
    size = len(pickle.dumps(annotations))
    shared = PackedDicts([{"annotations": annotations, "sent_id": k} for k in range(100)])
    copies = PackedDicts([{"annotations": _annotations(10), "sent_id": k} for k in range(100)])
    assert list(shared) == list(copies)
    assert copies.num_bytes > 100 * size * 0.9
    assert shared.num_bytes < 2 * size + 100 * 50


def test_keys_are_stored_once():
    long_key = "a_key_of_some_length" * 10
    packed = PackedDicts([{long_key: k} for k in range(100)])
    assert packed.num_bytes < 100 * 40
    assert packed[7] == {long_key: 7}


def test_equal_values_of_different_dicts_stay_apart():
    # Neither equality nor an identifier that is used again may join them.
    packed = PackedDicts([{"annotations": [[k % 3]]} for k in range(1000)])
    assert [d["annotations"][0][0] for d in packed] == [k % 3 for k in range(1000)]


def test_one_object_under_two_keys_of_a_dict():
    both = [1, 2]
    packed = PackedDicts([{"a": both, "b": both}])
    assert packed[0] == {"a": [1, 2], "b": [1, 2]}


def test_an_empty_list_can_be_packed():
    packed = PackedDicts([])
    assert len(packed) == 0
    assert list(packed) == []


def test_it_serves_as_a_dataset_of_worker_processes(dicts):
    loader = torchdata.DataLoader(PackedDicts(dicts), num_workers=1, collate_fn=lambda batch: batch)
    assert [item for batch in loader for item in batch] == dicts


def test_spawned_workers_get_the_buffers_by_reference():
    packed = PackedDicts([{"content": bytes([k]) * 10_000} for k in range(100)])
    assert packed.num_bytes > 1_000_000
    assert len(bytes(ForkingPickler.dumps(packed))) < 5000


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="reads /proc")
def test_reading_everything_in_a_forked_worker_copies_nothing():
    dicts = [{"points": [[k + x / 7] for x in range(50)]} for k in range(3000)]
    packed = PackedDicts(dicts)
    assert packed.num_bytes > 1_500_000
    assert _growth_of_a_worker(packed) < packed.num_bytes / 4
    # The list itself is copied, for comparison.
    assert _growth_of_a_worker(dicts) > 4 * packed.num_bytes


def _growth_of_a_worker(dicts):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read_all, args=(dicts, sender))
    process.start()
    grown = receiver.recv()
    process.join()
    return grown


def _read_all(dicts, sender):
    # A collection would write to every object that the parent has.
    gc.disable()
    before = _private_bytes()
    for record in dicts:
        sum(x for point in record["points"] for x in point)
    sender.send(_private_bytes() - before)


def _private_bytes():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_Dirty"))
