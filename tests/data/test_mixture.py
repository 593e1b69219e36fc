import itertools
from collections import Counter

import numpy as np
import pytest
from detectron2.config import get_cfg

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.mixture import (
    DatasetView,
    MixtureBatchSampler,
    MixtureDataset,
    MixtureStream,
    training_weights,
)


def _stream(weights=(1, 1), sizes=None, seed=0, names=None):
    sizes = sizes or [100] * len(weights)
    names = names or [f"d{i}" for i in range(len(weights))]
    return MixtureStream(names=names, sizes=sizes, weights=list(weights), seed=seed)


def _take(stream, start, stop):
    return [stream[sample] for sample in range(start, stop)]


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.5, 0.3, 0.2), (7, 1, 1.5, 0.1), (1e-3, 1)])
def test_shares_are_exact(weights):
    samples = 60_000
    counts = Counter(item.dataset for item in _take(_stream(weights), 0, samples))
    for dataset, weight in enumerate(weights):
        # Exact at the end of a block; inside one at most the share of a block is open.
        share = samples * weight / sum(weights)
        assert abs(counts[dataset] - share) <= max(64, 2 * sum(weights) / min(weights))
    block = 64
    if weights == (3, 1):
        firsts = Counter(item.dataset for item in _take(_stream(weights), 0, block))
        assert firsts == {0: 48, 1: 16}


def test_no_item_repeats_before_all_were_seen():
    items = _take(_stream(sizes=[10, 7]), 0, 2000)
    for dataset, size in enumerate([10, 7]):
        drawn = [item.index for item in items if item.dataset == dataset]
        for start in range(0, len(drawn) - size, size):
            assert sorted(drawn[start : start + size]) == list(range(size))
        assert drawn[:size] != drawn[size : 2 * size]


def test_a_position_does_not_depend_on_where_reading_began():
    items = _take(_stream((3, 1, 2), sizes=[10, 7, 300]), 0, 900)
    assert _take(_stream((3, 1, 2), sizes=[10, 7, 300]), 500, 900) == items[500:]
    stream = _stream((3, 1, 2), sizes=[10, 7, 300])
    assert [stream[s] for s in (899, 3, 450)] == [items[899], items[3], items[450]]


def test_the_seed_changes_the_stream():
    assert _take(_stream(seed=1), 0, 50) == _take(_stream(seed=1), 0, 50)
    assert _take(_stream(seed=1), 0, 50) != _take(_stream(seed=2), 0, 50)


def test_datasets_are_interleaved():
    datasets = [item.dataset for item in _take(_stream((1, 1)), 0, 64)]
    assert datasets != sorted(datasets)
    assert datasets != [0, 1] * 32


def _batches(rank=0, world_size=1, start=0, count=6, total=8):
    sampler = MixtureBatchSampler(
        _stream((2, 1)), total_batch_size=total, rank=rank, world_size=world_size, start=start
    )
    return list(itertools.islice(sampler, count))


def test_processes_share_the_batches_of_one():
    whole = _batches()
    for world_size in (2, 4):
        parts = [_batches(rank, world_size) for rank in range(world_size)]
        joined = [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)]
        assert joined == whole


def test_start_skips_batches():
    assert _batches(start=4, count=2) == _batches(count=6)[4:]
    assert [item.sample for item in _batches(start=4, count=1)[0]] == list(range(32, 40))


@pytest.mark.parametrize("total", [0, 3])
def test_a_batch_that_cannot_be_shared_is_refused(total):
    with pytest.raises(ValueError, match="IMS_PER_BATCH"):
        _batches(world_size=2, total=total)


def test_randomness_belongs_to_the_position():
    dataset = MixtureDataset(
        [["a", "b"], ["c"]], lambda record, rng: (record, int(rng.integers(1 << 30))), seed=5
    )
    stream = _stream(sizes=[2, 1])
    first = [dataset[item] for item in _take(stream, 0, 20)]
    assert [dataset[item] for item in reversed(_take(stream, 0, 20))] == first[::-1]
    assert len({value for _, value in first}) == 20
    other = MixtureDataset([["a", "b"], ["c"]], lambda _, rng: rng.integers(1 << 30), seed=6)
    assert not np.isin([other[item] for item in _take(stream, 0, 20)], [v for _, v in first]).any()


@pytest.fixture
def cfg(registered_scenes):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.DATASETS.TRAIN = ("test_semantic", "test_referring", "test_instance")
    return cfg


def _weights(cfg):
    return {view.spec: weight for view, weight in training_weights(cfg).items()}


def test_no_weights_means_equal_weights(cfg):
    assert _weights(cfg) == {"test_semantic": 1.0, "test_referring": 1.0, "test_instance": 1.0}


def test_weights_of_tasks_are_divided_by_the_weights_of_their_datasets(cfg):
    cfg.DATASETS.TRAIN = (*cfg.DATASETS.TRAIN, "test_panoptic@semantic", "test_instance@region")
    cfg.DATASETS.TRAIN_WEIGHTS = (3.0, 1.0, 5.0, 1.0, 2.0)
    cfg.DATASETS.TASK_WEIGHTS.SEMANTIC = 2.0
    cfg.DATASETS.TASK_WEIGHTS.INSTANCE = 7.0
    assert _weights(cfg) == {
        "test_semantic": 1.5,
        "test_panoptic@semantic": 0.5,
        "test_instance": 7.0,
    }


def test_a_view_has_its_own_task_and_the_dataset_of_its_name(registered_scenes):
    view = DatasetView.parse("test_referring@refinement")
    assert (view.dataset_name, view.task) == ("test_referring", "refinement")
    assert DatasetView.parse("test_instance").task == "instance"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("test_unheard_of", "'test_unheard_of', which is not registered.*test_instance"),
        ("test_instance@depth", "known tasks are semantic"),
        ("test_semantic@referring", "cannot be made from a dataset of the task 'semantic'"),
        ("test_instance@semantic", "cannot be made from"),
    ],
)
def test_views_that_make_no_sense_are_refused(registered_scenes, spec, message):
    with pytest.raises(ValueError, match=message):
        DatasetView.parse(spec)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ((), (), "Nothing to train on"),
        (("test_semantic", "test_instance"), (0.0, 0.0), "Nothing to train on"),
        (("test_semantic", "test_instance"), (1.0,), "2 names but TRAIN_WEIGHTS 1"),
        (("test_semantic", "test_instance"), (1.0, -1.0), "not be negative"),
        (("test_semantic", "test_semantic"), (), "twice"),
    ],
)
def test_weights_that_make_no_sense_are_refused(cfg, names, weights, message):
    cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS = names, weights
    with pytest.raises(ValueError, match=message):
        training_weights(cfg)


def test_a_share_for_a_task_without_a_dataset_is_refused(cfg):
    cfg.DATASETS.TASK_WEIGHTS.PANOPTIC = 1.0
    with pytest.raises(ValueError, match="gives panoptic a share, but no dataset"):
        training_weights(cfg)
    cfg.DATASETS.TASK_WEIGHTS.PANOPTIC = -1.0
    with pytest.raises(ValueError, match="must not be negative"):
        training_weights(cfg)
