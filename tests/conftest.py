"""Shared fixtures: a config, a model and inputs small enough for every test."""

import logging
import signal

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

import rose_d2  # noqa: F401  (registers the model and the datasets)
from rose_d2.checkpoint.export import export_merged
from rose_d2.checkpoint.weights import save_weights
from rose_d2.config.defaults import add_rose_config
from rose_d2.prompts.conversation import Conversation
from rose_d2.structures.category_names import CategoryNames

pytest_plugins = ["annotated_scene", "hand_made_scenes"]  # fixtures in tests/helpers

IMAGE_SIZE = 84  # 6 x 6 patches
TOY_DATASET = "rose_test_toy"
TOY_THINGS = ["dog", "red car", "tree"]


LOGGERS = {
    logger: (logger.handlers[:], logger.propagate, logger.level)
    for logger in map(logging.getLogger, ("rose_d2", "detectron2", "fvcore"))
}


def pytest_configure():
    """Let Ctrl-C, which tests send to themselves, interrupt the workers of pytest-xdist as well."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Put files with slow tests first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def plain_logging():
    """Takes back the logging set-up of commands, which hides messages from later tests."""
    yield
    for logger, (handlers, propagate, level) in LOGGERS.items():
        logger.handlers, logger.propagate = handlers[:], propagate
        logger.setLevel(level)


@pytest.fixture
def tiny_cfg():
    """The tiny config with still smaller numbers, on the CPU."""
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.merge_from_file("tests/shrunken.yaml")
    return cfg


@pytest.fixture
def tiny_model(tiny_cfg):
    """A randomly initialised ROSE on the 6 x 6 grid, the same in every test."""
    torch.manual_seed(0)
    return build_model(tiny_cfg)


@pytest.fixture
def exported(tiny_cfg, tiny_model, tmp_path):
    """Folder `exported` of a merged export of the random model."""
    weights = tmp_path / "weights.safetensors"
    save_weights(tiny_model, str(weights))
    export_merged(tiny_cfg, tiny_model, str(weights), tmp_path / "exported")
    return tmp_path / "exported"


@pytest.fixture
def toy_dataset():
    """Name of a dataset with metadata only."""
    metadata = MetadataCatalog.get(TOY_DATASET)
    metadata.set(thing_classes=TOY_THINGS, evaluator_type="coco")
    return TOY_DATASET


@pytest.fixture
def make_input(toy_dataset):
    """Build one model input with a dog and a red car; keywords replace its entries."""

    def make(task="instance", instruction="Segment everything.", response="None.", **entries):
        generator = torch.Generator().manual_seed(7)
        side = IMAGE_SIZE

        def noise(*shape):
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

        item = {
            "image": noise(3, side, side),
            "sam_image": noise(3, 48, 64),
            "height": 96,
            "width": 128,
            "file_name": "toy.jpg",
            "image_id": 1,
            "dataset_name": toy_dataset,
            "task": task,
            "conversation": Conversation(instruction, response),
            "instances": toy_instances(),
            "negative_points": torch.zeros(0, 2),
            "ignore_mask": torch.zeros(side, side, dtype=torch.bool),
        }
        return {**item, **entries}

    return make


def toy_instances():
    """A dog of 20 x 20 pixels around patch (1, 1) and a red car of 40 x 28 below it."""
    masks = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool)
    masks[0, 11:31, 11:31] = True
    masks[1, 50:78, 30:70] = True
    instances = Instances((IMAGE_SIZE, IMAGE_SIZE))
    instances.gt_masks = BitMasks(masks)
    instances.gt_classes = torch.tensor([0, 1])
    instances.gt_category_names = CategoryNames(["dog", "red car"])
    instances.gt_is_stuff = torch.zeros(2, dtype=torch.bool)
    return instances
