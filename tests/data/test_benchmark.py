import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.datasets.registration import unregister
from rose_d2.profiling.pipeline import (
    COCO_LIKE,
    measure_memory,
    measure_throughput,
    register_coco_like,
)


@pytest.fixture
def cfg(tmp_path):
    register_coco_like(tmp_path, num_images=3)
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.MODEL.LMM.IMAGE_SIZE, cfg.MODEL.MASK_HEAD.IMAGE_SIZE = 84, 128
    cfg.SEED = 0
    # A mix of tasks must not matter to what is measured.
    cfg.DATASETS.TASK_WEIGHTS.SEMANTIC = 1.0
    yield cfg
    unregister(COCO_LIKE)


def test_pictures_have_ten_objects_of_the_size_of_coco(cfg):
    records = DatasetCatalog.get(COCO_LIKE)
    assert [(r["height"], r["width"]) for r in records] == [(480, 640)] * 3
    assert [len(r["annotations"]) for r in records] == [10] * 3


@pytest.mark.parametrize("spec", [COCO_LIKE, f"{COCO_LIKE}@refinement"])
def test_the_shares_of_the_stages_add_up(cfg, spec):
    result = measure_throughput(cfg, spec, num_samples=4)
    assert result.images_per_second > 0
    assert sum(result.shares.values()) == pytest.approx(1)
    for stage in ("decode the image file", "resize to the two views", "decode the annotated masks"):
        assert result.shares[stage] > 0.01, stage


def test_memory_is_of_the_worker_at_every_moment(cfg):
    moments = list(measure_memory(cfg, COCO_LIKE, num_samples=20))
    assert [samples for samples, _ in moments] == list(range(2, 21, 2))
    assert all(1 < megabytes < 2000 for _, megabytes in moments)
