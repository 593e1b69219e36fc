import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.build import fixed_subset
from rose_d2.evaluation.build import build_evaluator
from rose_d2.layers.logit_masks import LogitMasks


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
def test_ground_truth_passes_through_the_dense_evaluators(
    cfg, scenes, perfect, kind, tasks, monkeypatch
):
    # A hundred masks of a photograph would fill a gigabyte.
    monkeypatch.setattr(LogitMasks, "tensor", property(lambda _: pytest.fail("all masks drawn")))
    evaluator = build_evaluator(cfg, scenes.names[kind])
    evaluator.reset()
    for sample in scenes.dicts[kind]:
        output = copy.deepcopy(perfect[sample["image_id"]])
        instances = output["instances"]
        instances.pred_masks = LogitMasks(instances.pred_masks.float() - 0.5)
        if kind == "coco":
            output = {"instances": output["instances"][output["instances"].pred_classes < 2]}
        evaluator.process([sample], [output])
    results = evaluator.evaluate()
    assert set(results) == tasks
    headline = {"coco": ("segm", "AP"), "sem_seg": ("sem_seg", "mIoU")}
    task, metric = headline.get(kind, ("panoptic_seg", "PQ"))
    assert results[task][metric] == pytest.approx(100)
    assert results["names"]["name_exact"] == 100
    assert results["names"]["name_similarity"] == pytest.approx(100)
    assert (scenes.root / "run" / "inference" / scenes.names[kind]).is_dir()


@pytest.mark.parametrize(
    ("kind", "task"),
    [("coco", "segm"), ("sem_seg", "sem_seg"), ("coco_panoptic_seg", "panoptic_seg")],
)
def test_levels_and_open_metrics_follow_the_config(
    cfg, scenes, perfect, name_rules, monkeypatch, kind, task
):
    asked = []

    def similarity(names, measure, *, wordnet):
        asked.append((len(names), measure, wordnet))
        return np.eye(len(names))

    monkeypatch.setattr("rose_d2.evaluation.build.class_similarity_matrix", similarity)
    cfg.TEST.OPEN_METRICS, cfg.TEST.VOCABULARY.WORDNET = "wup", ""
    evaluator = build_evaluator(cfg, scenes.names[kind])
    evaluator.reset()
    for sample in scenes.dicts[kind]:
        output = copy.deepcopy(perfect[sample["image_id"]])
        if kind == "coco":
            output = {"instances": output["instances"][output["instances"].pred_classes < 2]}
        name_rules(output["instances"], ["exact"] * len(output["instances"]))
        if kind == "sem_seg":
            answer = {"sem_seg_labels": output["sem_seg"].argmax(dim=0)}
        elif kind == "coco_panoptic_seg":
            answer = {"panoptic_seg": output["panoptic_seg"]}
        if kind != "coco":
            output["levels"] = dict.fromkeys(("exact", "normalised", "synonym"), answer)
        evaluator.process([sample], [output])
    results = evaluator.evaluate()
    expected = dict.fromkeys(("exact", "normalised", "synonym"), pytest.approx(100))
    assert results[f"{task}_levels"] == results["names_levels"] == expected
    assert [*results[f"open_{task}"].values()][0] == pytest.approx(100)
    assert asked == [(2 if kind == "coco" else 4, "wup", "")]


@pytest.mark.parametrize("kind", ["coco", "sem_seg", "coco_panoptic_seg"])
def test_the_order_of_the_images_does_not_matter(cfg, scenes, perfect, name_rules, kind):
    """As with several processes; not a digit may differ. Scores tie, some names are wrong."""
    cfg.TEST.VOCABULARY.WORDNET = ""
    for output in perfect.values():
        things = output["instances"][output["instances"].pred_classes < 2]
        things.scores[:] = 0.5
        things.pred_masks[0, :, :20] = False
        things.pred_classes[-1] = 0
        output["instances"] = name_rules(things, ["exact", "synonym"])
        output["sem_seg"][2:, :, :7] = 0
        output["panoptic_seg"][0][:9] = 0
        output["levels"] = {
            "exact": {
                "sem_seg_labels": output["sem_seg"][:4].argmax(dim=0),
                "panoptic_seg": output["panoptic_seg"],
            }
        }
    results = []
    for step in (1, -1):
        evaluator = build_evaluator(cfg, scenes.names[kind])
        evaluator.reset()
        for sample in scenes.dicts[kind][::step]:
            evaluator.process([sample], [copy.deepcopy(perfect[sample["image_id"]])])
        results.append(evaluator.evaluate())
    assert str(results[0]) == str(results[1])  # NaN does not equal itself
    assert 0 < results[0]["names"]["recall"] < 100


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


@pytest.mark.parametrize("kind", ["coco", "sem_seg"])
def test_a_fixed_part_is_scored_without_the_rest(cfg, scenes, perfect, kind):
    cfg.TEST.NUM_SAMPLES = 1
    evaluator = build_evaluator(cfg, scenes.names[kind])
    evaluator.reset()
    (sample,) = fixed_subset(scenes.dicts[kind], 1)
    output = copy.deepcopy(perfect[sample["image_id"]])
    if kind == "coco":
        output = {"instances": output["instances"][output["instances"].pred_classes < 2]}
    evaluator.process([sample], [output])
    task, metric = {"coco": ("segm", "AP"), "sem_seg": ("sem_seg", "mIoU")}[kind]
    assert evaluator.evaluate()[task][metric] == pytest.approx(100)


def test_a_fixed_part_of_the_expressions_needs_no_other_answers(cfg, scenes):
    cfg.TEST.NUM_SAMPLES = 2
    evaluator = build_evaluator(cfg, scenes.names["refcoco"])
    evaluator.reset()
    for sample in fixed_subset(scenes.dicts["refcoco"], 2):
        nothing = torch.zeros(scenes.ids[sample["image_id"]].shape, dtype=torch.bool)
        evaluator.process([sample], [{"ref_seg": nothing, "ref_patch": -1}])
    assert evaluator.evaluate()["referring"]["cIoU"] == 0


def test_pq_of_a_part_is_refused(cfg, scenes):
    cfg.TEST.NUM_SAMPLES = 1
    with pytest.raises(ValueError, match="TEST.NUM_SAMPLES is 1, but PQ of .* counts all"):
        build_evaluator(cfg, scenes.names["coco_panoptic_seg"])


def test_an_unknown_evaluator_type_is_named(cfg):
    MetadataCatalog.get("hand_made_boxes").set(evaluator_type="lvis")
    with pytest.raises(ValueError, match="'lvis'; known are sem_seg, coco"):
        build_evaluator(cfg, "hand_made_boxes")
    MetadataCatalog.remove("hand_made_boxes")
