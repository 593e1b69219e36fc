"""What users have on disk is still read: the shipped checkpoint, a session, saved predictions.

The files of tests/fixtures were written by version 0.1.0 with the random model of
tests/shrunken.yaml. Write no others in their place: they are what an update must not break.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.modeling import build_model

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.checkpoint.weights import read_safetensors
from rose_d2.config.fingerprint import prediction_fingerprint
from rose_d2.config.read import read_config
from rose_d2.data.datasets.registration import unregister
from rose_d2.engine.evaluate import SavedRun
from rose_d2.evaluation.predictions import PredictionStore
from rose_d2.predictor.predictor import RosePredictor

FIXTURES = Path("tests/fixtures")  # the config of the predictions has this path too
SHIPPED = Path("checkpoints/rose_tiny")


@pytest.mark.parametrize("config", [SHIPPED / "config.yaml", "configs/rose_tiny.yaml"], ids=str)
def test_the_shipped_checkpoint_has_exactly_the_weights_of_the_model(config):
    cfg = read_config(str(config), ["MODEL.WEIGHTS", str(SHIPPED), "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    stored, _ = read_safetensors(str(SHIPPED / "model.safetensors"))
    assert {name for name, p in model.named_parameters() if p.requires_grad} <= set(stored)
    RoseCheckpointer(model, allow_missing_keys=False).load(cfg.MODEL.WEIGHTS)
    state = model.state_dict()
    for name, tensor in stored.items():
        assert (state[name] == tensor).all(), name


def test_a_session_is_reopened_and_goes_on(tiny_cfg, tiny_model):
    session = RosePredictor(tiny_cfg, model=tiny_model).reopen(FIXTURES / "session")
    noise = np.random.default_rng(1).integers(0, 256, (20, 25, 3), dtype=np.uint8)
    assert (session.image == noise).all()
    brought, expression = session.segments
    assert (brought.id, brought.replaces, brought.category_name) == (2, 1, "dög")
    assert (brought.is_thing, brought.name_score, int(brought.mask.sum())) == (False, None, 20)
    assert brought.score == 0.5592261552810669
    assert expression.expression == "the thing on the right" and expression.name_score is not None
    assert [turn.text for turn in session.dialogue if turn.who == "user"] == [
        "I add 1 dög (0.30)",
        "the left part is missing",
        "the thing on the right",
    ]
    assert session.refine(2, "Fix it")[0].id == 5
    session.undo()
    session.undo()
    assert [segment.id for segment in session.segments] == [2]
    session.undo()
    (first,) = session.segments
    assert first.score == 0.1 + 0.2 and np.argwhere(first.mask).min(axis=0).tolist() == [3, 4]


@pytest.fixture
def predictions():
    folder = FIXTURES / "predictions"
    name = PredictionStore(folder, None).fingerprint["dataset"]
    yield folder
    unregister(name)


def test_predictions_are_scored_to_the_same_numbers(predictions, tmp_path):
    found = SavedRun(predictions).score(str(tmp_path))
    expected = json.loads((predictions / "scores.json").read_text())
    assert expected["segm"]["AP"] == 100
    assert set(found) == set(expected)
    for task, numbers in expected.items():
        same = {name: found[task][name] for name in numbers}  # later versions tell more
        assert same == pytest.approx(numbers, nan_ok=True), task


def test_an_evaluation_continues_the_predictions(predictions, tmp_path):
    cfg = SavedRun(predictions).cfg
    copy = shutil.copytree(predictions, tmp_path / "copy")
    name, sha256 = "rose_fixture_two_pictures", "ab" * 32
    store = PredictionStore(copy, prediction_fingerprint(cfg, name, 2, sha256))
    assert store.keys() == ["1", "2"]
    instances = store.get("2")["open_instances"]
    assert instances.image_size == (12, 16) and len(instances.pred_category_names) > 0
    assert instances.pred_masks[0, 3:10, 2:8].all()  # the annotated dog
    # Written as log-probabilities of -5.67.
    assert store.get("1")["open_instances"].name_scores[0] == pytest.approx(
        math.exp(-5.674864768981934)
    )
