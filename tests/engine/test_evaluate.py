import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from toy_training import ToyROSE, toy_config

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.config.fingerprint import config_hash, file_sha256, library_versions
from rose_d2.engine.trainer import RoseTrainer, evaluate_weights

CALLS = []


@pytest.fixture
def toy_evaluation(monkeypatch):
    """Makes `RoseTrainer.test` return fixed numbers, and registers a dataset of three items."""
    numbers = {"segm": {"AP": 41.5, "APs": float("nan")}}

    def test(cls, cfg, model, **options):
        CALLS.append(options)
        return numbers

    monkeypatch.setattr(RoseTrainer, "test", classmethod(test))
    DatasetCatalog.register("toy_val", lambda: [{}] * 3)
    MetadataCatalog.get("toy_val").evaluator_type = "coco"
    yield
    DatasetCatalog.remove("toy_val")
    MetadataCatalog.remove("toy_val")
    CALLS.clear()


def test_results_say_where_they_come_from(tmp_path, toy_evaluation):
    RoseCheckpointer(ToyROSE(), str(tmp_path)).save("model_final")
    cfg = toy_config(
        tmp_path / "out", "DATASETS.TEST", ("toy_val",), "MODEL.WEIGHTS", tmp_path / "model_final"
    )
    evaluate_weights(cfg, overwrite_predictions=True)
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["results"] == {"toy_val": {"segm": {"AP": 41.5, "APs": None}}}
    assert report["dataset_sizes"] == {"toy_val": 3}
    path, sha256 = CALLS[0]["weights"]
    assert path.endswith("model_final/model.safetensors") and sha256 == file_sha256(path)
    assert report["checkpoint"] == {"path": path, "sha256": sha256}
    assert CALLS[0]["overwrite_predictions"]
    assert report["config_hash"] == config_hash(cfg)
    assert report["versions"] == library_versions()
    assert "41.5" in (tmp_path / "out" / "report.md").read_text()


def test_evaluation_without_weights_is_refused(tmp_path, toy_evaluation):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS"):
        evaluate_weights(toy_config(tmp_path, "DATASETS.TEST", ("toy_val",)))
    assert not CALLS


def test_missing_weights_are_refused_before_the_model_is_built(tmp_path, toy_evaluation):
    cfg = toy_config(tmp_path, "DATASETS.TEST", ("toy_val",), "MODEL.WEIGHTS", "nowhere")
    cfg.MODEL.META_ARCHITECTURE = "NoSuchModel"
    with pytest.raises(FileNotFoundError, match="No weights at nowhere"):
        evaluate_weights(cfg)


def test_weights_that_do_not_fit_are_never_evaluated(tmp_path, toy_evaluation):
    RoseCheckpointer(ToyROSE(base="frozen"), str(tmp_path)).save("partial")
    cfg = toy_config(
        tmp_path / "out", "DATASETS.TEST", ("toy_val",), "MODEL.WEIGHTS", tmp_path / "partial"
    )
    with pytest.raises(ValueError, match=r"missing: frozen\.weight"):
        evaluate_weights(cfg)
    assert not CALLS
