"""Whatever a file holds: a result or one sentence, in bounded time, and nothing outside its folder.

`make fuzz` draws thousands of inputs (FUZZ_INPUTS of them); the ordinary suite draws 300.
"""

import json
import os
import random
import time

import fuzz_inputs as inputs
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy_training import ToyROSE

from rose_d2.checkpoint.weights import (
    load_weights,
    read_safetensors,
    read_torch_file,
    save_weights,
)
from rose_d2.config.read import read_config
from rose_d2.data.annotations import decode_any
from rose_d2.data.datasets.custom import read_class_names, register_custom
from rose_d2.data.datasets.registration import unregister
from rose_d2.evaluation.ground_truth import load_objects
from rose_d2.evaluation.instance import coco_ground_truth
from rose_d2.evaluation.predictions import PredictionStore

NUM_INPUTS = int(os.environ.get("FUZZ_INPUTS", "300"))
SECONDS = 10
NAME = "rose_test_fuzz"


def use_annotations(folder, draw):
    """Register, load, decode for training and for evaluation."""
    path = folder / "ann.json"
    path.write_text(json.dumps(inputs.mutate(inputs.annotations(), draw)))
    if draw.random() < 0.2:
        path.write_bytes(inputs.damage(path.read_bytes(), draw))
    inputs.write_images(folder / "images")
    register_custom([(NAME, "coco", str(folder / "images"), str(path))])
    records = DatasetCatalog.get(NAME)
    classes = MetadataCatalog.get(NAME).thing_classes
    coco = coco_ground_truth(records, len(classes))
    assert len(coco.anns) == sum(len(record["annotations"]) for record in records) > 0
    for record in records:
        regions, _ = decode_any(record, MetadataCatalog.get(NAME), 14)
        assert len(regions) == len(record["annotations"])
        assert all(0 <= class_id < len(classes) for class_id in load_objects(record).classes)
    for annotation in coco.anns.values():
        assert np.isfinite(annotation["bbox"]).all() and annotation["area"] >= 0
        coco.annToMask(annotation)


def use_label_images(folder, draw):
    """The same of label images."""
    inputs.write_images(folder / "images")
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("wall\nsky: stuff\nbox\n")
    for number in (1, 2):
        inputs.write_label_image(folder / "labels" / f"{number}.png", draw)
    paths = [str(folder / name) for name in ("images", "labels", "classes.txt")]
    register_custom([(NAME, "labels", *paths)])
    for record in DatasetCatalog.get(NAME):
        regions, _ = decode_any(record, MetadataCatalog.get(NAME), 14)
        assert set(regions.classes.tolist()) <= {0, 1, 2}


def use_class_list(folder, draw):
    path = folder / "classes.names"
    path.write_bytes(inputs.class_list(draw))
    names = read_class_names(path)
    assert names and len(set(names)) == len(names) and all(n == n.strip() and n for n in names)


def use_config(folder, draw):
    path = folder / "config.yaml"
    path.write_bytes(inputs.config(draw))
    cfg = read_config(str(path))
    assert cfg.TEST.TOP_K >= 1 and cfg.SOLVER.BASE_LR >= 0
    assert all(value > 0 for value in cfg.MODEL.LMM.PIXEL_STD)


def use_weights(folder, draw):
    path = folder / "model.safetensors"
    model = ToyROSE()
    save_weights(model, str(path))
    inputs.write_weights(path, read_safetensors(str(path))[0], draw)
    load_weights(model, str(path))
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def use_torch_file(folder, draw):
    path = folder / "state.pth"
    torch.save({"a": torch.zeros(3), "b": [1, "x"]}, path)
    path.write_bytes(inputs.damage(path.read_bytes(), draw))
    assert isinstance(read_torch_file(path), dict)


def use_predictions(folder, draw):
    description = {"dataset": "x", "num_samples": 1, "checkpoint_sha256": "0"}
    (folder / "predictions.json").write_text(json.dumps(description))
    line = json.dumps(inputs.mutate(inputs.record(), draw)) + "\n"
    (folder / "process-0000.jsonl").write_text(line)
    store = PredictionStore(folder, None)
    assert all(isinstance(store.get(key), dict) for key in store.keys())  # noqa: SIM118


USES = {
    use.__name__.removeprefix("use_"): use
    for use in (
        *(use_annotations, use_label_images, use_class_list, use_config),
        *(use_weights, use_torch_file, use_predictions),
    )
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", USES)
def test_a_result_or_one_sentence(tmp_path, monkeypatch, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    accepted = 0
    for seed in range(NUM_INPUTS // len(USES)):
        folder = tmp_path / f"{kind}_{seed}"
        folder.mkdir()
        begun = time.monotonic()
        try:
            USES[kind](folder, random.Random(f"{kind} {seed}"))
            accepted += 1
        except (ValueError, FileNotFoundError) as error:
            assert str(error), f"{kind} {seed}: an error without a word"
            assert "\x00" not in str(error)
        except Exception as error:
            pytest.fail(f"{kind} {seed}: {error!r}")
        finally:
            unregister(NAME)
        assert time.monotonic() - begun < SECONDS, f"{kind} {seed} took too long"
    assert not list(outside.iterdir())
    assert accepted, f"nothing of {kind} is read: the sound input is none"
    print(f"{kind}: {accepted} of {NUM_INPUTS // len(USES)} accepted")
