import mmap
import time

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.datasets.registration import unregister
from rose_d2.profiling.pipeline import (
    COCO_LIKE,
    EvaluationCost,
    measure_evaluation,
    measure_memory,
    measure_throughput,
    register_coco_like,
)

BATCHES = [[{"image_id": i, "task": "referring"}] for i in range(40)]


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


def model(inputs):
    time.sleep(0.004)
    return [{"ref_patch": item["image_id"]} for item in inputs]


class Slow(DatasetEvaluator):
    def process(self, inputs, outputs):
        time.sleep(0.002)

    def evaluate(self):
        time.sleep(0.02)


class Refusing(DatasetEvaluator):
    def evaluate(self):
        raise ValueError("a part of the dataset is missing")


class Hoarding(DatasetEvaluator):
    def reset(self):
        self.kept = []

    def process(self, inputs, outputs):
        self.kept.append(bytearray(b"x" * 1_000_000))


class Mapping(DatasetEvaluator):
    """Takes its memory from the system; a large process has room for small objects already."""

    def reset(self):
        self.pages = []

    def process(self, inputs, outputs):
        self.pages.append(mmap.mmap(-1, 1_000_000))
        self.pages[-1].write(b"x" * 1_000_000)


@pytest.mark.slow
def test_each_part_is_timed_on_its_own():
    cost = measure_evaluation(model, BATCHES, DatasetEvaluators([Slow(), Refusing()]), 20)
    assert cost.num_images == 20
    assert cost.model >= 4 and cost.process["Slow"] >= 2
    assert cost.process["Refusing"] < cost.process["Slow"]
    assert cost.finish["Slow"] >= 1 and cost.finish["Refusing"] is None
    assert 0 < cost.encoded < 0.02


@pytest.mark.slow
def test_growing_memory_is_seen():
    cost = measure_evaluation(model, BATCHES, Mapping(), 40)
    # Resident memory has other reasons to grow, too.
    assert 80 < cost.memory_growth < 150


@pytest.mark.slow
def test_growing_state_is_seen():
    cost = measure_evaluation(model, BATCHES, Hoarding(), 40)
    assert 100 <= cost.state < 101


def test_the_share_counts_process_and_end():
    cost = EvaluationCost(9, 1.0, 10.0, {"A": 0.5, "B": 1.0}, {"A": 0.5, "B": None}, [], 0.0, 0.1)
    assert cost.share == 0.2


def test_memory_that_goes_up_and_down_does_not_grow():
    memory = [(8 * i, 700.0 + 50 * (i % 2)) for i in range(1, 17)]
    assert EvaluationCost(128, 1.0, 1.0, {}, {}, memory, 0.0, 0.1).memory_growth == 0
    memory = [(images, megabytes + images / 10) for images, megabytes in memory]
    cost = EvaluationCost(128, 1.0, 1.0, {}, {}, memory, 0.0, 0.1)
    assert cost.memory_growth == pytest.approx(10)


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="no image"):
        measure_evaluation(model, [], Slow(), 5)
