import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch.utils.data as torchdata
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm

from rose_d2.config.defaults import add_rose_config
from rose_d2.data import build
from rose_d2.data.build import (
    PackedDicts,
    WholeBatchSampler,
    build_rose_test_loader,
    build_rose_train_loader,
    fixed_subset,
    load_training_dicts,
    obey_only_the_parent,
)
from rose_d2.data.datasets.builtin import DEFAULT_ROOT
from rose_d2.data.datasets.refcoco import register_refer
from rose_d2.data.datasets.registration import unregister
from rose_d2.data.image_io import ImageReadError


@pytest.fixture
def cfg(registered_scenes):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.MODEL.LMM.IMAGE_SIZE = 20
    cfg.MODEL.MASK_HEAD.IMAGE_SIZE = 32
    cfg.SEED = 1
    cfg.DATASETS.TRAIN = tuple(registered_scenes.values())
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.CANDIDATE_PROB = 0.5
    return cfg


def _read(cfg, count, start_iter=0):
    batches = itertools.islice(build_rose_train_loader(cfg, start_iter), count)
    return [
        [(item["task"], item["image_id"], item["conversation"], item["image"].sum().item())]
        for batch in batches
        for item in batch
    ]


def test_tasks_are_mixed_by_weight(cfg):
    cfg.DATASETS.TRAIN_WEIGHTS = (1.0, 2.0, 0.0, 1.0)
    counts = {}
    for batch in itertools.islice(build_rose_train_loader(cfg), 16):  # 64 samples: one block
        for item in batch:
            counts[item["dataset_name"]] = counts.get(item["dataset_name"], 0) + 1
    names = cfg.DATASETS.TRAIN
    assert counts == {names[0]: 16, names[1]: 32, names[3]: 16}


def test_a_dataset_of_weight_zero_is_not_opened(cfg):
    def fail():
        raise AssertionError("opened")

    DatasetCatalog.register("test_closed", fail)
    MetadataCatalog.get("test_closed").task = "instance"
    try:
        cfg.DATASETS.TRAIN = ("test_instance", "test_closed")
        cfg.DATASETS.TRAIN_WEIGHTS = (1.0, 0.0)
        next(iter(build_rose_train_loader(cfg)))
    finally:
        unregister("test_closed")


def test_resuming_continues_the_stream(cfg):
    cfg.SOLVER.ACCUMULATION_STEPS = 3
    # 5 iterations of 3 micro-batches of 4 images.
    assert _read(cfg, 4, start_iter=5) == _read(cfg, 19)[5 * 3 * 4 :]


def test_workers_do_not_change_the_stream(cfg):
    alone = _read(cfg, 6)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert _read(cfg, 6) == alone


def test_two_processes_see_the_stream_of_one(cfg, monkeypatch):
    alone = _read(cfg, 3)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(_read(cfg, 3))
    assert [len(part) for part in parts] == [6, 6]
    joined = [part[2 * b : 2 * b + 2] for b in range(3) for part in parts]
    assert list(itertools.chain(*joined)) == alone


@pytest.mark.parametrize("batch_size", [1, 2])
def test_test_loader_gives_every_item_once_in_order(cfg, batch_size):
    cfg.TEST.IMS_PER_BATCH = batch_size
    batches = list(build_rose_test_loader(cfg, "test_panoptic"))
    assert [item["image_id"] for batch in batches for item in batch] == [0, 1, 2]
    assert len(batches[0]) == batch_size
    assert all("instances" not in item for batch in batches for item in batch)


def test_a_view_makes_samples_of_another_task(cfg):
    cfg.DATASETS.TRAIN = ("test_panoptic@refinement", "test_panoptic")
    cfg.DATASETS.TASK_WEIGHTS.REFINEMENT, cfg.DATASETS.TASK_WEIGHTS.PANOPTIC = 3.0, 1.0
    items = [item for batch in itertools.islice(build_rose_train_loader(cfg), 16) for item in batch]
    tasks = [item["task"] for item in items]
    assert (tasks.count("refinement"), tasks.count("panoptic")) == (48, 16)
    assert all(("prior_mask" in item) == (item["task"] == "refinement") for item in items)


def test_views_of_one_dataset_read_it_once(cfg, registered_scenes, monkeypatch):
    reads = []
    load = build.load_dataset_dicts
    monkeypatch.setattr(
        build, "load_dataset_dicts", lambda *a, **k: reads.append(a) or load(*a, **k)
    )
    cfg.DATASETS.TRAIN = ("test_panoptic@refinement", "test_panoptic", "test_panoptic@region")
    build_rose_train_loader(cfg)
    assert reads == [("test_panoptic",)]


def test_a_damaged_image_is_replaced_and_named_once(cfg, registered_scenes, tmp_path, caplog):
    records = DatasetCatalog.get("test_instance")
    (tmp_path / "damaged.jpg").write_bytes(b"no image")
    records[1]["file_name"] = str(tmp_path / "damaged.jpg")
    DatasetCatalog.remove("test_instance")
    DatasetCatalog.register("test_instance", lambda: records)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS = ("test_instance",), ()
    batches = list(itertools.islice(build_rose_train_loader(cfg), 6))
    assert {item["image_id"] for batch in batches for item in batch} == {0, 2}
    assert sum("damaged.jpg" in record.getMessage() for record in caplog.records) == 1
    cfg.DATASETS.STRICT = True
    with pytest.raises(ImageReadError, match="damaged.jpg"):
        list(itertools.islice(build_rose_train_loader(cfg), 6))


def test_a_dataset_of_damaged_images_only_is_an_error(cfg, registered_scenes):
    records = [r | {"file_name": "missing.jpg"} for r in DatasetCatalog.get("test_instance")]
    DatasetCatalog.remove("test_instance")
    DatasetCatalog.register("test_instance", lambda: records)
    cfg.DATASETS.TRAIN = ("test_instance",)
    with pytest.raises(FileNotFoundError, match=r"missing.jpg"):
        next(iter(build_rose_train_loader(cfg)))


def test_referring_evaluation_images_are_left_out_of_training(cfg, registered_scenes, tmp_path):
    # Images 0, 1 and 2 are registered; 1 is a val image of a benchmark on the same source.
    references = [
        {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": []},
        {"ref_id": 2, "ann_id": 2, "image_id": 2, "split": "train", "sentences": []},
    ]
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(references, 2))
    register_refer(tmp_path)
    MetadataCatalog.get("test_instance").image_source = "coco"
    try:
        left = load_training_dicts(cfg, "test_instance")
        assert [record["image_id"] for record in left] == [0, 2]
        cfg.DATASETS.EXCLUDE_EVAL_SPLITS = ()
        assert len(load_training_dicts(cfg, "test_instance")) == 3
        cfg.DATASETS.EXCLUDE_EVAL_SPLITS = ("nobody",)
        with pytest.raises(ValueError, match="'nobody'; splits were made by berkeley, google"):
            load_training_dicts(cfg, "test_instance")
    finally:
        register_refer(DEFAULT_ROOT)


def batches_of(monkeypatch, size, batch_size, num_processes):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: num_processes)
    found = []
    for rank in range(num_processes):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        sampler = WholeBatchSampler(size, batch_size)
        indices = list(sampler)
        assert len(indices) == len(sampler)
        found.append([indices[i : i + batch_size] for i in range(0, len(indices), batch_size)])
    return found


@pytest.mark.parametrize("size", [1, 7, 8, 20])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_batches_do_not_depend_on_the_processes(monkeypatch, size, batch_size):
    (alone,) = batches_of(monkeypatch, size, batch_size, 1)
    assert sum(alone, []) == list(range(size))
    for num_processes in (2, 3, 4):
        shares = batches_of(monkeypatch, size, batch_size, num_processes)
        assert sum(shares, []) == alone
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def work(ready):
    obey_only_the_parent()
    ready.set()
    time.sleep(60)


def sigterm_is_pending(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (pending,) = [line.split()[1] for line in lines if line.startswith("ShdPnd:")]
    return int(pending, 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the signal's sender is not told")
def test_only_the_parent_ends_a_worker():
    ready = multiprocessing.get_context("fork").Event()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(ready,), daemon=True)
    worker.start()
    ready.wait()
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    while sigterm_is_pending(worker.pid):
        time.sleep(0.01)
    worker.join(timeout=0.5)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(timeout=10)
    assert worker.exitcode == 0


def test_workers_of_all_loaders_are_prepared(monkeypatch, tiny_cfg):
    called = []
    monkeypatch.setattr(build, "obey_only_the_parent", lambda: called.append(1))
    monkeypatch.setattr(build.cv2, "setNumThreads", lambda threads: None)
    item = {"file_name": "a.jpg", "image_id": 1, "task": "instance", "dataset_name": "toy"}
    monkeypatch.setattr(build, "load_training_dicts", lambda cfg, name: [item])
    tiny_cfg.SOLVER.IMS_PER_BATCH = 1
    for loader in (
        build.build_rose_train_loader(tiny_cfg),
        build.build_rose_test_loader(tiny_cfg, "toy", [item]),
    ):
        loader.worker_init_fn(0)
    assert len(called) == 2


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


def test_a_fixed_subset_is_spread_evenly():
    assert fixed_subset(range(10), 4) == [0, 2, 5, 7]
    assert fixed_subset(range(3), 0) == fixed_subset(range(3), 5) == [0, 1, 2]
