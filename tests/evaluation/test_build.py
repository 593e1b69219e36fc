import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from rose_d2.config import add_rose_config
from rose_d2.evaluation.build import build_evaluator


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.MODEL.LMM.IMAGE_SIZE = 84
    return cfg


@pytest.mark.parametrize(
    ("kind", "tasks"),
    [
        ("coco", {"bbox", "segm", "names"}),
        ("sem_seg", {"sem_seg", "names"}),
        ("coco_panoptic_seg", {"panoptic_seg", "names"}),
    ],
)
def test_ground_truth_passes_through_the_dense_evaluators(cfg, scenes, perfect, kind, tasks):
    evaluator = build_evaluator(cfg, scenes.names[kind])
    evaluator.reset()
    for sample in scenes.dicts[kind]:
        output = copy.deepcopy(perfect[sample["image_id"]])
        if kind == "coco":
            output = {"instances": output["instances"][output["instances"].pred_classes < 2]}
        evaluator.process([sample], [output])
    results = evaluator.evaluate()
    assert set(results) == tasks
    headline = {"coco": ("segm", "AP"), "sem_seg": ("sem_seg", "mIoU")}
    task, metric = headline.get(kind, ("panoptic_seg", "PQ"))
    assert results[task][metric] == pytest.approx(100)
    assert results["names"]["name_exact"] == 100
    assert (scenes.root / "run" / "inference" / scenes.names[kind]).is_dir()


def test_referring_uses_the_grid_and_window_of_the_config(cfg, scenes):
    cfg.MODEL.SUPER_PATCH.WINDOW = 1
    evaluator = build_evaluator(cfg, scenes.names["refcoco"], str(scenes.root / "out"))
    evaluator.reset()
    dog = scenes.dicts["refcoco"][0]
    # The centre (16, 9) of 60 x 40 is (22.4, 18.9) of 84 x 84: row 1, column 1 of 6 x 6.
    for sample in scenes.dicts["refcoco"]:
        nothing = torch.zeros(scenes.ids[sample["image_id"]].shape, dtype=torch.bool)
        patch = 1 * 6 + 1 if sample is dog else -1
        evaluator.process([sample], [{"ref_seg": nothing, "ref_patch": patch}])
    assert evaluator.evaluate()["referring"]["P@answer_patch"] == 20


def test_an_unknown_evaluator_type_is_named(cfg):
    MetadataCatalog.get("hand_made_boxes").set(evaluator_type="lvis")
    with pytest.raises(ValueError, match="'lvis'; known are coco"):
        build_evaluator(cfg, "hand_made_boxes")
    MetadataCatalog.remove("hand_made_boxes")
