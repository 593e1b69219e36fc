import itertools

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from rose_d2.config import add_rose_config
from rose_d2.data.build import build_rose_test_loader, build_rose_train_loader, train_weights


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
    try:
        cfg.DATASETS.TRAIN = ("test_instance", "test_closed")
        cfg.DATASETS.TRAIN_WEIGHTS = (1.0, 0.0)
        next(iter(build_rose_train_loader(cfg)))
    finally:
        DatasetCatalog.remove("test_closed")


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


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ((), (), "Nothing to train on"),
        (("a", "b"), (0.0, 0.0), "Nothing to train on"),
        (("a", "b"), (1.0,), "2 names but TRAIN_WEIGHTS 1"),
        (("a", "b"), (1.0, -1.0), "not be negative"),
        (("a", "a"), (), "twice"),
    ],
)
def test_weights_that_make_no_sense_are_refused(cfg, names, weights, message):
    cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS = names, weights
    with pytest.raises(ValueError, match=message):
        train_weights(cfg)


def test_no_weights_means_equal_weights(cfg):
    cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS = ("a", "b"), ()
    assert train_weights(cfg) == {"a": 1.0, "b": 1.0}
