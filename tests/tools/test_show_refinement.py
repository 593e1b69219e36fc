"""The contact sheet shows every kind of sample, with the prior that the sample has."""

import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from scripts import load_script

from rose_d2.config.defaults import add_rose_config

SCRIPT = Path(__file__).parents[2] / "tools" / "show_refinement.py"
DATASET = "test_show_refinement"


@pytest.fixture
def tool():
    module = load_script(SCRIPT)
    yield module
    del sys.modules["show_refinement"]


@pytest.fixture
def dataset(tmp_path):
    """Two images of 40 x 60 pixels with a dog and a cat; the cat fills the right half."""
    Image.fromarray(np.full((40, 60, 3), 90, dtype=np.uint8)).save(tmp_path / "image.png")
    boxes = [(5, 5, 25, 30), (30, 0, 60, 40)]
    annotations = [
        {"category_id": i, "iscrowd": 0, "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
        for i, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    record = {"file_name": str(tmp_path / "image.png"), "height": 40, "width": 60}
    records = [{**record, "image_id": i, "annotations": annotations} for i in range(2)]
    DatasetCatalog.register(DATASET, lambda: records)
    names = ["dog", "cat"]
    MetadataCatalog.get(DATASET).set(task="instance", evaluator_type="coco", thing_classes=names)
    yield DATASET
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def test_samples_go_round_all_kinds(tool, dataset):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.merge_from_file("configs/rose_tiny.yaml")
    samples = tool.make_samples(cfg, dataset, 2 * len(tool.KINDS), seed=0)
    assert [kind for kind, _ in samples] == list(tool.KINDS) * 2
    for kind, item in samples:
        assert item["task"] == kind.task
        has_prior = kind.title not in ("missed", "region as a box")
        assert bool(item["prior_mask"].any()) == has_prior
        true = item["instances"].gt_masks.tensor
        iou = tool.pairwise_mask_iou(true, item["prior_mask"].bool()).item()
        if "holes" in kind.title:
            assert 0.7 <= iou <= 1
        elif "stretched" in kind.title:
            assert 0.3 <= iou <= 0.9
        else:
            assert iou == has_prior


def test_the_sheet_is_written_and_shows_the_prior(tool, dataset, tmp_path, capsys):
    output = tmp_path / "new" / "sheet.png"
    arguments = ["--config-file", "configs/rose_tiny.yaml", "--dataset", dataset, "--num", "3"]
    tool.main([*arguments, "--output", str(output), "MODEL.LMM.IMAGE_SIZE", "84"])
    assert "3 samples" in capsys.readouterr().out
    sheet = np.asarray(Image.open(output))
    # Two samples of three cells side by side, two rows of them.
    assert sheet.shape[1] > 6 * tool.CELL
    assert sheet.shape[0] > 2 * tool.CELL
    # The grey 90 is darkened to 30 behind the prior, and 65 % of the rest is the tint.
    tinted = 0.35 * 30 + 0.65 * np.array([tool.KEPT, tool.MISSING])
    for colour in tinted.astype(np.uint8):
        assert (sheet == colour).all(axis=2).sum() > 100


def test_an_unknown_dataset_is_one_sentence(tool, tmp_path, refusal):
    arguments = ["--config-file", "configs/rose_tiny.yaml", "--output", str(tmp_path / "a.png")]
    sentence = refusal(tool, [*arguments, "--dataset", "nothing"])
    assert "'nothing'" in sentence and "not registered" in sentence
    with pytest.raises(SystemExit):
        tool.main([*arguments, "--num", "0"])
