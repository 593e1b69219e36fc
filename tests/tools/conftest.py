"""What a command needs that measures a trained model."""

import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from rose_d2.checkpoint.weights import save_weights
from rose_d2.data.datasets.clipart import clipart_metadata, load_clipart
from rose_d2.synthetic.clipart import BenchmarkSettings, write_benchmark


@pytest.fixture(autouse=True)
def log_handlers():
    """Give back the handlers that a tool adds: they write where only its own test reads."""
    loggers = [logging.getLogger(name) for name in ("rose_d2", "detectron2")]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers


@pytest.fixture
def refusal(capsys):
    """Run a tool that has to refuse, and return the one sentence it says."""

    def run(tool, arguments):
        assert tool.main([str(argument) for argument in arguments]) == 1
        sentence = capsys.readouterr().err
        assert sentence.count("\n") == 1, sentence
        return sentence

    return run


@pytest.fixture
def two_scenes(tmp_path):
    """Name of a panoptic dataset of two clip-art scenes."""
    name = "rose_test_two_scenes"
    sizes = {"train": 1, "val": 2, "val_unseen": 1}
    write_benchmark(BenchmarkSettings(seed=5, num_scenes=sizes), tmp_path / "clipart")
    DatasetCatalog.register(name, lambda: load_clipart(tmp_path, "panoptic", "val"))
    MetadataCatalog.get(name).set(**clipart_metadata(tmp_path, "panoptic", "val"))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def saved_model(tiny_cfg, tmp_path, monkeypatch):
    """Config file of a random model with weights; it asks for a GPU, and there is none."""
    torch.manual_seed(0)
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "model.safetensors")
    save_weights(build_model(tiny_cfg), tiny_cfg.MODEL.WEIGHTS)
    tiny_cfg.MODEL.DEVICE = "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    return str(tmp_path / "config.yaml")
