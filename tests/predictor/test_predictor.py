from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from rose_d2.checkpoint.weights import save_weights
from rose_d2.config.defaults import add_rose_config
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.predictor.predictor import RosePredictor, find_weights
from rose_d2.predictor.questions import resolve_task

CONFIG = Path(__file__).parents[2] / "configs" / "rose_tiny.yaml"


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


class Recorder(nn.Module):
    """Stands for the model: remembers its inputs and returns their sizes."""

    def forward(self, batched_inputs):
        self.inputs = batched_inputs
        self.had_gradients = torch.is_grad_enabled()
        return [{"size": (item["height"], item["width"])} for item in batched_inputs]


def image(height=30, width=50):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_inputs_equal_those_of_the_test_mapper(cfg, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(image()).save(path)
    described = {
        "file_name": str(path),
        "height": 30,
        "width": 50,
        "task": "referring",
        "dataset_name": "none",
        "sentence": "the dog",
    }
    expected = RoseDatasetMapper(cfg, is_train=False)(described)
    predictor = RosePredictor(cfg, model=Recorder())
    built = predictor.make_input(image(), task="referring", refer="the dog")
    assert torch.equal(built["image"], expected["image"])
    assert torch.equal(built["sam_image"], expected["sam_image"])
    for key in ("height", "width", "task", "conversation"):
        assert built[key] == expected[key]
    assert "dataset_name" not in built, "an image of no dataset has no vocabulary"


def test_candidates_reach_the_model_and_its_instruction(cfg):
    predictor = RosePredictor(cfg, model=Recorder())
    predictor(image(), candidates=("dog", "cat"))
    (item,) = predictor.model.inputs
    assert item["candidates"] == ["dog", "cat"]
    assert item["task"] == "panoptic"
    assert "dog, cat" in item["conversation"].instruction


def test_a_batch_is_one_call_without_gradients_in_evaluation_mode(cfg):
    predictor = RosePredictor(cfg, model=Recorder().train())
    outputs = predictor.predict_batch([image(), image(7, 9)], task="semantic")
    assert [output["size"] for output in outputs] == [(30, 50), (7, 9)]
    assert not predictor.model.had_gradients
    assert not predictor.model.training
    assert predictor.predict_batch([]) == []


@pytest.mark.parametrize(
    ("task", "refer", "candidates", "resolved"),
    [
        (None, None, None, "panoptic"),
        ("semantic", None, ["dog"], "semantic"),
        (None, "the dog", None, "referring"),
        ("referring", "the dog", None, "referring"),
    ],
)
def test_options_mean_a_task(task, refer, candidates, resolved):
    assert resolve_task(task, refer, candidates) == resolved


@pytest.mark.parametrize(
    ("task", "refer", "candidates", "message"),
    [
        ("instance", "the dog", None, "one of the two"),
        (None, "the dog", ["dog"], "no class candidates"),
        (None, "  ", None, "empty"),
        (None, None, [], "one or more names"),
        (None, None, ["dog", " "], "none of them empty"),
        ("boxes", None, None, "semantic, instance, panoptic"),
        ("referring", None, None, "give an expression"),
    ],
)
def test_contradictory_options_are_refused(task, refer, candidates, message):
    with pytest.raises(ValueError, match=message):
        resolve_task(task, refer, candidates)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[1, 2], [3, 4]],
    ],
)
def test_images_of_another_kind_are_refused(cfg, wrong):
    with pytest.raises(ValueError, match="uint8 RGB"):
        RosePredictor(cfg, model=Recorder())(wrong)


def test_missing_weights_are_found_out_before_the_model_is_built(cfg, tmp_path):
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        RosePredictor(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        find_weights(cfg)


def test_the_weights_of_the_config_are_loaded_and_used(cfg, tmp_path):
    torch.manual_seed(5)
    source = build_model(cfg).eval()
    save_weights(source, str(tmp_path / "model.safetensors"))
    cfg.MODEL.WEIGHTS = str(tmp_path)
    cfg.freeze()
    loaded = RosePredictor(cfg)
    expected = RosePredictor(cfg, model=source)
    photo = image(60, 40)
    output, same = loaded(photo, refer="the dog"), expected(photo, refer="the dog")
    assert output["ref_seg"].shape == (60, 40)
    assert output["ref_seg"].dtype == torch.bool
    assert torch.equal(output["ref_seg"], same["ref_seg"])
    assert output["ref_patch"] == same["ref_patch"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_model_runs_on_the_cpu(cfg, tmp_path):
    save_weights(build_model(cfg), str(tmp_path / "model.safetensors"))
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = str(tmp_path), "cuda"
    assert RosePredictor(cfg).model.device.type == "cpu"
    assert cfg.MODEL.DEVICE == "cuda", "the caller's config stays as it is"
