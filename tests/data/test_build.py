import itertools
import pickle

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from rose_d2.config.defaults import add_rose_config
from rose_d2.data import build
from rose_d2.data.build import build_rose_test_loader, build_rose_train_loader, load_training_dicts
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
