import importlib.util
import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from rose_d2.data.clipart.splits import BenchmarkSettings
from rose_d2.data.clipart.writer import write_benchmark
from rose_d2.data.datasets.clipart import clipart_metadata, load_clipart
from rose_d2.engine.checkpoints.weights import save_weights

SCRIPT = Path(__file__).parents[2] / "tools" / "measure_refinement.py"
DATASET = "measure_refinement_test"


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("measure_refinement", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dataset(tmp_path):
    """Two clip-art scenes."""
    sizes = {"train": 1, "val": 2, "val_unseen": 1}
    write_benchmark(BenchmarkSettings(seed=5, num_scenes=sizes), tmp_path / "clipart")
    DatasetCatalog.register(DATASET, lambda: load_clipart(tmp_path, "panoptic", "val"))
    MetadataCatalog.get(DATASET).set(**clipart_metadata(tmp_path, "panoptic", "val"))
    yield DATASET
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def test_a_random_model_is_measured_on_two_scenes(tool, dataset, tiny_cfg, tmp_path, capsys):
    torch.manual_seed(0)
    save_weights(build_model(tiny_cfg), str(tmp_path / "model.safetensors"))
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    options = ["--config-file", str(tmp_path / "config.yaml"), "--dataset", dataset]
    tool.main([*options, "--num", "2", "--seeds", "2", "TEST.IMS_PER_BATCH", "4"])
    table, start, rest = capsys.readouterr().out.partition("{")
    result = json.loads(start + rest)
    assert (result["images"], result["seeds"]) == (2, 2)
    mean, spread = result["mask"]["iou_before"]
    assert 50 <= mean <= 70 and spread > 0
    assert result["missed"]["iou_before"] == [0, 0]
    assert "mask" in table and f"{mean:.1f} ± {spread:.1f}" in table


def test_a_measurement_without_seeds_is_refused(tool, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["--config-file", "x.yaml", "--seeds", "0"])
    assert "--seeds must be at least 1" in capsys.readouterr().err
