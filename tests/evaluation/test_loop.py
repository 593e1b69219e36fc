import logging
import threading
import time

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from PIL import Image

from rose_d2.data.build import build_rose_test_loader
from rose_d2.data.image_io import ImageReadError
from rose_d2.evaluation.build import build_evaluator
from rose_d2.evaluation.ground_truth import ReferringTarget
from rose_d2.evaluation.loop import inference_on_dataset
from rose_d2.evaluation.predictions import PredictionStore

BATCHES = [
    [{"image_id": 2 * i, "task": "instance"}, {"image_id": 2 * i + 1, "task": "instance"}]
    for i in range(6)
]


def answer(inputs):
    return [{"ref_patch": 10 * item["image_id"]} for item in inputs]


class Recorder(DatasetEvaluator):
    """Remembers what it saw; may fail."""

    def __init__(self, fail_at=None):
        self.fail_at = fail_at

    def reset(self):
        self.seen, self.threads = [], set()

    def process(self, inputs, outputs):
        self.threads.add(threading.current_thread().name)
        for item, output in zip(inputs, outputs, strict=True):
            if item["image_id"] == self.fail_at:
                raise ZeroDivisionError("the evaluator is broken")
            assert output["ref_patch"] == 10 * item["image_id"]
            self.seen.append(item["image_id"])

    def evaluate(self):
        return {"seen": self.seen}


@pytest.mark.parametrize("overlap", [True, False])
def test_every_item_is_evaluated_in_order(overlap):
    recorder = Recorder()
    results = inference_on_dataset(answer, BATCHES, recorder, overlap=overlap)
    assert results == {"seen": list(range(12))}
    assert recorder.threads == {"scoring" if overlap else "MainThread"}


def test_scoring_runs_beside_the_model():
    """Scoring of batch i ends only after the model has begun batch i + 1."""
    begun = [threading.Event() for _ in BATCHES]

    def model(inputs):
        begun[inputs[0]["image_id"] // 2].set()
        return answer(inputs)

    class Waiting(Recorder):
        def process(self, inputs, outputs):
            after = inputs[0]["image_id"] // 2 + 1
            assert after == len(BATCHES) or begun[after].wait(timeout=20)
            super().process(inputs, outputs)

    assert inference_on_dataset(model, BATCHES, Waiting()) == {"seen": list(range(12))}


@pytest.mark.parametrize("overlap", [True, False])
def test_an_error_of_the_evaluator_stops_the_model(overlap):
    asked = []

    def model(inputs):
        asked.append(inputs[0]["image_id"])
        time.sleep(0.02)
        return answer(inputs)

    with pytest.raises(ZeroDivisionError, match="evaluator"):
        inference_on_dataset(model, BATCHES * 10, Recorder(fail_at=2), overlap=overlap)
    assert len(asked) <= 5
    assert "scoring" not in {thread.name for thread in threading.enumerate()}


def test_an_error_in_the_last_batch_is_not_lost():
    with pytest.raises(ZeroDivisionError, match="evaluator"):
        inference_on_dataset(answer, BATCHES, Recorder(fail_at=11))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_of_the_model_leaves_the_store_usable(tmp_path, error):
    def failing(inputs):
        if inputs[0]["image_id"] == 6:
            time.sleep(0.3)  # the batches before are stored meanwhile
            raise error
        return answer(inputs)

    store = PredictionStore(tmp_path, {})
    with pytest.raises(error):
        inference_on_dataset(failing, BATCHES, Recorder(), store=store)
    assert "scoring" not in {thread.name for thread in threading.enumerate()}
    store = PredictionStore(tmp_path, {})
    assert store.keys() == [str(i) for i in range(6)]
    asked = []

    def model(inputs):
        asked.extend(item["image_id"] for item in inputs)
        return answer(inputs)

    results = inference_on_dataset(model, BATCHES, Recorder(), store=store)
    assert results == {"seen": list(range(12))} and asked == list(range(6, 12))


def test_every_batch_is_on_disk_before_the_run_ends(tmp_path):
    """So that a process that is killed loses only what is not scored yet."""
    found = []

    class Reading(Recorder):
        def process(self, inputs, outputs):
            found.append(len(PredictionStore(tmp_path, None)))

    store = PredictionStore(tmp_path, {})
    inference_on_dataset(answer, BATCHES, Reading(), store=store)
    assert found == [2, 4, 6, 8, 10, 12]


def test_an_incomplete_batch_is_run_as_a_whole(tmp_path):
    store = PredictionStore(tmp_path, {})
    for image_id in (2, 3, 4):
        store.add(str(image_id), {"ref_patch": 10 * image_id}, "instance")
    asked = []

    def model(inputs):
        asked.append([item["image_id"] for item in inputs])
        return answer(inputs)

    results = inference_on_dataset(model, BATCHES, Recorder(), store=store)
    assert results == {"seen": list(range(12))}
    assert asked == [[0, 1], [4, 5], [6, 7], [8, 9], [10, 11]]


def test_the_model_is_in_evaluation_mode_without_gradients():
    class Model(torch.nn.Module):
        def forward(self, inputs):
            assert not self.training and not torch.is_grad_enabled()
            return answer(inputs)

    class Checking(Recorder):
        def process(self, inputs, outputs):
            assert not torch.is_grad_enabled()

    model = Model()
    inference_on_dataset(model, BATCHES, Checking())
    assert model.training


@pytest.mark.parametrize("batches", [[], BATCHES[:1], BATCHES])
def test_totals_are_logged_as_detectron2_does(batches, caplog):
    with caplog.at_level(logging.INFO, logger="rose_d2"):
        inference_on_dataset(answer, batches, None)
    assert f"Start inference on {len(batches)} batches" in caplog.text
    assert "Total inference time: 0:00:00" in caplog.text
    assert "Total inference pure compute time: 0:00:00" in caplog.text


@pytest.mark.parametrize("kind", ["coco", "sem_seg", "coco_panoptic_seg"])
def test_scores_from_the_store_are_identical(scenes, perfect, tiny_cfg, tmp_path, kind):
    """With real evaluators and predictions that are partly wrong."""
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "out")
    name = scenes.names[kind]
    for output in perfect.values():
        if kind == "coco":
            output["instances"] = output["instances"][output["instances"].pred_classes < 2]
        output["instances"].scores[-1] = 0.123456789
        output["instances"].pred_masks[-1] = output["instances"].pred_masks[-1].roll(3, dims=0)
        output["sem_seg"] = output["sem_seg"].roll(2, dims=2)
        ids, segments = output["panoptic_seg"]
        output["panoptic_seg"] = ids.roll(2, dims=1), segments
    batches = [[{**sample, "task": kind}] for sample in DatasetCatalog.get(name)]

    def model(inputs):
        return [perfect[item["image_id"]] for item in inputs]

    def never(inputs):
        raise AssertionError("the store has everything")

    plain = inference_on_dataset(model, batches, build_evaluator(tiny_cfg, name))
    for run in (model, never):
        store = PredictionStore(tmp_path / "predictions", {})
        evaluator = build_evaluator(tiny_cfg, name)
        assert repr(inference_on_dataset(run, batches, evaluator, store=store)) == repr(plain)


HEADLINES = {
    "coco": ("segm", "AP"),
    "sem_seg": ("sem_seg", "mIoU"),
    "coco_panoptic_seg": ("panoptic_seg", "PQ"),
    "refcoco": ("referring", "cIoU"),
}


@pytest.fixture
def evaluate_perfectly(scenes, perfect, tiny_cfg):
    """Function that evaluates right answers through the test loader."""
    tiny_cfg.DATALOADER.NUM_WORKERS, tiny_cfg.TEST.IMS_PER_BATCH = 0, 2
    for output in perfect.values():
        output["things"] = output["instances"][output["instances"].pred_classes < 2]

    def model_of(kind):
        def answer_of(item):
            output = perfect[item["image_id"]]
            if kind != "refcoco":
                return output if kind != "coco" else {"instances": output["things"]}
            record = next(d for d in scenes.dicts[kind] if d["sent_id"] == item["sent_id"])
            return {"ref_seg": torch.from_numpy(ReferringTarget(record).mask)}

        return lambda inputs: [answer_of(item) for item in inputs]

    def run(kind, strict=False):
        name = scenes.names[kind]
        loader = build_rose_test_loader(tiny_cfg, name, strict=strict)
        return inference_on_dataset(model_of(kind), loader, build_evaluator(tiny_cfg, name))

    return run


def spoil_label(scenes):
    """A class that nobody listed, in one label image."""
    path = scenes.root / "000002_labels.png"
    labels = np.array(Image.open(path))
    labels[0, 0] = 200
    Image.fromarray(labels).save(path)


SPOIL = {
    "the image": lambda scenes: (scenes.root / "000002.jpg").write_bytes(b"no image"),
    "its label image": spoil_label,
    "its panoptic image": lambda scenes: (scenes.root / "panoptic/000002.png").unlink(),
}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        *((kind, "the image") for kind in HEADLINES),
        *(("sem_seg", what) for what in list(SPOIL)[1:]),
        ("coco_panoptic_seg", "its panoptic image"),
    ],
)
def test_what_is_unusable_costs_its_own_samples(evaluate_perfectly, scenes, caplog, kind, what):
    """Perfect answers to the rest stay perfect; the one line counts what is left out."""
    SPOIL[what](scenes)
    results = evaluate_perfectly(kind)
    task, metric = HEADLINES[kind]
    assert results[task][metric] == pytest.approx(100)
    samples, of = (2, 5) if kind == "refcoco" else (1, 2)
    assert results["left_out"] == {"samples": samples, "of": of}
    lines = [r.message for r in caplog.records if r.message.startswith("Left out of all scores")]
    assert len(lines) == 1 and f"{samples} of {of} samples" in lines[0] and "000002" in lines[0]
    with pytest.raises((ImageReadError, FileNotFoundError)):
        evaluate_perfectly(kind, strict=True)


def test_nothing_usable_is_no_result(evaluate_perfectly, scenes):
    for path in scenes.root.glob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"Nothing can be evaluated: 2 of 2 .*000001\.jpg"):
        evaluate_perfectly("coco")
