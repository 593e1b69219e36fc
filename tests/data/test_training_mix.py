import pytest
from detectron2.config import get_cfg

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.mixture import DatasetView, training_weights


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
