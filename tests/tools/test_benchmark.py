from pathlib import Path

import pytest
from PIL import Image
from scripts import load_script

from rose_d2.data.datasets.registration import unregister
from rose_d2.profiling.comparison import Comparison
from rose_d2.profiling.pipeline import COCO_LIKE
from rose_d2.profiling.pretended_gpu import PretendedCost
from rose_d2.profiling.roofline import Work
from rose_d2.profiling.steps import StepCost

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark.py"


@pytest.fixture
def benchmark():
    module = load_script(SCRIPT)
    yield module
    unregister(COCO_LIKE)


def test_speed_is_printed_with_its_stages(benchmark, capsys):
    command = ["data", "--config-file", "configs/rose_tiny.yaml", "--num", "3"]
    assert benchmark.main(command) == 0
    shown = capsys.readouterr().out
    assert f"{COCO_LIKE}: " in shown and "images a second in one process" in shown
    assert shown.count(" %  ") == 5


def test_an_unknown_dataset_is_one_sentence(benchmark, capsys):
    assert benchmark.main(["data", "--dataset", "nothing", "--num", "1"]) == 1
    error = capsys.readouterr().err
    assert "'nothing', which is not registered" in error
    assert error.count("\n") == 1


def test_steps_are_reported_for_each_batch_size(benchmark, monkeypatch, capsys):
    def cost(cfg, *sizes):
        measured.append((cfg.SOLVER.IMS_PER_BATCH, *sizes))
        parts = {"SAM encoder": 0.2, "SAM decoder": 0.3}
        return StepCost(0.5, 4, parts, 2_000_000_000, 10**12, 10**11)

    measured = []
    monkeypatch.setattr(benchmark, "measure_training", cost)
    monkeypatch.setattr(benchmark, "measure_inference", cost)
    assert benchmark.main(["infer", "--batch-size", "1", "4", "--num", "2"]) == 0
    shown = capsys.readouterr().out
    assert "inference: 4 images, top 100" in shown
    assert "8 images a second" in shown
    assert "1.50 times the backbones is all the rest" in shown
    assert "2.000 GB at the fullest moment" in shown
    assert "2.200 TFLOP/s" in shown
    assert benchmark.main(["train", "--num", "3", "--opts", "SOLVER.IMS_PER_BATCH", "6"]) == 0
    assert "training: 6 images of 10 objects x 1 micro-batches a step" in capsys.readouterr().out
    assert measured == [(8, 1, 2), (8, 4, 2), (6, 3, 10)]


def test_trained_weights_are_measured_on_images(benchmark, monkeypatch, capsys):
    def load(cfg, dataset):
        assert (cfg.TEST.IMS_PER_BATCH, dataset) == (2, "clipart_panoptic_val")
        return iter([[1, 2], [3, 4], [5]])

    def cost(model, batches):
        assert (model, batches) == ("model", [[1, 2], [3, 4]])
        return StepCost(0.5, 2, {"SAM encoder": 0.2, "mask NMS": 0.1}, 10**9, 10**12)

    monkeypatch.setattr(benchmark, "check_test_datasets", lambda names: None)
    monkeypatch.setattr(benchmark, "build_rose_test_loader", load)
    monkeypatch.setattr(benchmark, "load_model", lambda cfg: "model")
    monkeypatch.setattr(benchmark, "measure_answers", cost)
    asked = ["infer", "--dataset", "clipart_panoptic_val", "--batch-size", "2"]
    assert benchmark.main([*asked, "--num", "3"]) == 0
    shown = capsys.readouterr().out
    assert "2 images of clipart_panoptic_val, means and median of 2" in shown
    assert "0.50 times the backbones is all the rest" in shown
    monkeypatch.setattr(benchmark, "build_rose_test_loader", lambda *_: iter([[5]]))
    assert benchmark.main(asked) == 1
    assert "has less than 2 images" in capsys.readouterr().err


def test_rose_is_compared_with_others(benchmark, monkeypatch, tmp_path, capsys):
    def compare(*given):
        asked.append(given)
        return Comparison(f"number {len(asked)}", "ours", "theirs", [1.0], [2.0])

    asked = []
    for name in ("compare_with_stack", "compare_with_sam", "compare_with_generate"):
        monkeypatch.setattr(benchmark, name, compare)
    Image.new("RGB", (8, 6), (9, 0, 0)).save(tmp_path / "red.png")
    words = ["compare", "--num-objects", "2", "7", "--num", "3", "--image", tmp_path / "red.png"]
    words += ["--opts", "MODEL.WEIGHTS", "checkpoints/rose_tiny"]
    assert benchmark.main([str(word) for word in words]) == 0
    assert [given[1:] for given in asked[:2]] == [(2, 3), (7, 3)]
    predictor, image, pairs = asked[2]
    assert image.shape == (6, 8, 3) and image[0, 0].tolist() == [0, 0, 9] and pairs == 3
    assert asked[3] == (predictor.model, 100, 3)
    shown = capsys.readouterr().out
    assert shown.count("2.0 times as long") == 4 and "number 4" in shown


def test_datasets_are_compared_with_detectron2(benchmark, monkeypatch, capsys):
    def compare(*given):
        asked.append(given[-3:] if len(given) == 4 else given)
        return Comparison(f"number {len(asked)}", "ours", "theirs", [1.0], [2.0])

    asked = []
    for name in ("compare_evaluators", "compare_mappers"):
        monkeypatch.setattr(benchmark, name, compare)
    monkeypatch.setattr(benchmark, "check_test_datasets", lambda names: None)
    words = ["compare", "--num", "3"]
    for dataset in ("clipart_instance_val", "clipart_sem_seg_val"):
        words += ["--dataset", dataset]
    assert benchmark.main(words) == 0
    instances, mapped, semantic = asked
    assert instances == ("clipart_instance_val", 3) and semantic == ("clipart_sem_seg_val", 3)
    assert mapped == ("clipart_instance_val", 3, 100)
    assert capsys.readouterr().out.count("2.0 times as long") == 3


def test_roofs_are_printed_for_each_load(benchmark, monkeypatch, capsys):
    def cost(cfg, batch_size):
        measured.append((cfg.TEST.TOP_K, batch_size))
        return PretendedCost({"SAM encoder": Work(1e12, 1e9, 0.5, 0.5, 9)}, 0)

    measured = []
    monkeypatch.setattr(benchmark, "inference", cost)
    monkeypatch.setattr(benchmark, "training_step", cost)
    words = ["roof", "--config-file", "configs/rose_tiny.yaml", "--batch-size", "1", "4"]
    assert benchmark.main([*words, "--num-objects", "5", "--micro-batch", "3"]) == 0
    assert measured == [(5, 1), (5, 4), (5, 3)]
    shown = capsys.readouterr().out
    assert "inference: 4 images, 5 objects in each kept and named, on an H200" in shown
    assert "at most 8.0 images a second" in shown
    assert "a training step: 3 images of 10 objects" in shown


def test_growth_is_drawn_and_printed(benchmark, monkeypatch, tmp_path, capsys):
    def measured(cfg, num):
        return {
            "objects": [(1, StepCost(num, 1, {}, 10**9, 0)), (10, StepCost(6, 1, {}, 10**9, 0))],
            "images in a batch": [(8, StepCost(4, 8, {}, 2 * 10**9, 0))],
        }

    monkeypatch.setattr(benchmark, "sweep", measured)
    path = tmp_path / "plots" / "speed.png"
    path.parent.mkdir()
    assert benchmark.main(["sweep", "--num", "3", "--output", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "seconds an image, objects: 1: 3, 10: 6" in shown
    assert "seconds an image, images in a batch: 8: 0.5" in shown
    assert "GB at the fullest moment, images in a batch: 8: 2" in shown
    assert path.stat().st_size > 0


def test_an_unknown_key_is_one_sentence(benchmark, capsys):
    assert benchmark.main(["train", "--opts", "SOLVER.NOTHING", "1"]) == 1
    assert "KEY VALUE pairs" in capsys.readouterr().err
