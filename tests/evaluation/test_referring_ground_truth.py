"""The truth as answer scores 100 on every referring dataset, from files to numbers."""

import json
import os

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from pycocotools import mask as coco_mask

from rose_d2.data.build import build_rose_test_loader
from rose_d2.data.datasets.clipart import SPLITS, register_clipart
from rose_d2.data.datasets.refcoco import REFER_SPLITS, register_refer
from rose_d2.data.datasets.refer_files import load_plain_pickle
from rose_d2.evaluation.build import build_evaluator
from rose_d2.synthetic.clipart import BenchmarkSettings, write_benchmark
from rose_d2.synthetic.miniature_refer import write_refer

REFER_NAMES = [
    f"{dataset}_{split_by}_{split}"
    for (dataset, split_by), splits in REFER_SPLITS.items()
    for split in splits
]
CLIPART_NAMES = [f"clipart_refer_{split}" for split in SPLITS]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_refer(root, with_images=True)
    write_benchmark(BenchmarkSettings(1, {"train": 2, "val": 3, "val_unseen": 2}), root / "clipart")
    register_refer(root)
    register_clipart(root)
    yield root
    default = os.environ.get("DETECTRON2_DATASETS", "datasets")
    register_refer(default)
    register_clipart(default)


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    tiny_cfg.OUTPUT_DIR = str(tmp_path)
    return tiny_cfg


def _draw(annotation, height, width):
    """The mask of an annotation as it stands in instances.json, bool (H, W)."""
    parts = annotation["segmentation"]
    parts = parts if isinstance(parts, list) else [parts]
    is_compressed = isinstance(parts[0], dict) and not isinstance(parts[0]["counts"], list)
    codes = parts if is_compressed else coco_mask.frPyObjects(parts, height, width)
    return coco_mask.decode(codes).any(axis=2)


def _true_masks(root, name):
    """Reference -> its mask, read from the files without the package's loader."""
    is_clipart = name.startswith("clipart")
    dataset, split_by = ("clipart/refer", "unc") if is_clipart else name.split("_")[:2]
    instances = json.loads((root / dataset / "instances.json").read_text())
    if dataset == "grefcoco":
        references = json.loads((root / dataset / "grefs(unc).json").read_text())
    else:
        references = load_plain_pickle(root / dataset / f"refs({split_by}).p")
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    annotations = {a["id"]: a for a in instances["annotations"]}
    masks = {}
    for reference in references:
        size = sizes[reference["image_id"]]
        mask = np.zeros(size, dtype=bool)
        ids = reference["ann_id"]
        for ann_id in ids if isinstance(ids, list) else [ids]:
            if ann_id != -1 and not annotations[ann_id]["iscrowd"]:
                mask |= _draw(annotations[ann_id], *size)
        masks[reference["ref_id"]] = torch.as_tensor(mask)
    return masks


def _score(cfg, root, name, change=lambda mask: mask):
    masks = _true_masks(root, name)
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for batch in build_rose_test_loader(cfg, name):
        outputs = [{"ref_seg": change(masks[item["ref_id"]])} for item in batch]
        evaluator.process(batch, outputs)
    return evaluator.evaluate()


@pytest.mark.parametrize("name", [*CLIPART_NAMES, *REFER_NAMES])
def test_the_truth_scores_100(cfg, root, name):
    results = _score(cfg, root, name)["referring"]
    generalised = {"N-acc", "T-acc"} if name.startswith("grefcoco") else set()
    precisions = {f"P@0.{tenths}" for tenths in range(5, 10)}
    overall = {n for n in results if n in generalised or "-" not in n}
    assert overall == {"cIoU", "gIoU", *precisions, *generalised}
    assert all(value == 100 for value in results.values())


@pytest.mark.parametrize("name", ["clipart_refer_val", "refclef_unc_testC", "grefcoco_unc_testA"])
def test_the_truth_scores_100_per_reference(cfg, root, name):
    cfg.TEST.REFERRING.PROTOCOL = "per_ref"
    results = _score(cfg, root, name)
    assert list(results) == ["referring_per_ref"]
    assert all(value == 100 for value in results["referring_per_ref"].values())


def test_silence_scores_only_where_there_is_nothing(cfg, root):
    results = _score(cfg, root, "grefcoco_unc_train", torch.zeros_like)["referring"]
    assert (results["N-acc"], results["T-acc"], results["cIoU"]) == (100, 0, 0)
    assert results["gIoU"] == pytest.approx(100 * 3 / 30)


def test_all_of_them_are_evaluated_as_referring_expressions():
    types = {MetadataCatalog.get(name).evaluator_type for name in [*CLIPART_NAMES, *REFER_NAMES]}
    assert types == {"refcoco"}
