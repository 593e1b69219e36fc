import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from rose_d2.evaluation.predictions import decode_output, encode_output
from rose_d2.refinement.evaluation import (
    RefinementEvaluator,
    build_evaluation_model,
    build_refinement_evaluator,
    how_chosen,
    metric_gains,
    refinement_metrics,
)
from rose_d2.refinement.rose_with_refinement import ROSEWithRefinement


class CountingEvaluator(DatasetEvaluator):
    """Sums the numbers it is given."""

    def reset(self):
        self.sum = 0

    def process(self, inputs, outputs):
        self.sum += sum(output["number"] for output in outputs)

    def evaluate(self):
        return {"segm": {"AP": float(self.sum), "AP50": 2.0 * self.sum}}


class LevelEvaluator(CountingEvaluator):
    """Has another result besides."""

    def evaluate(self):
        return {**super().evaluate(), "segm_levels": {"exact": 5.0}}


def refinement(situation, before, after, **entries):
    return {
        "situation": situation,
        "iou_before": before,
        "iou_after": after,
        "class_after": 0,
        "target_class": 0,
        "chosen_with": "ground truth",
        **entries,
    }


def output(before, after, *refinements):
    return {"number": after, "before": {"number": before}, "refinements": list(refinements)}


@pytest.fixture
def evaluator():
    evaluator = RefinementEvaluator(CountingEvaluator(), CountingEvaluator())
    evaluator.reset()
    return evaluator


def test_results_before_after_and_gain_stand_side_by_side(evaluator):
    evaluator.process([{}, {}], [output(10, 14), output(1, 0)])
    results = evaluator.evaluate()
    assert results["segm_before"] == {"AP": 11.0, "AP50": 22.0}
    assert results["segm"] == {"AP": 14.0, "AP50": 28.0}
    assert results["segm_gain"] == {"AP": 3.0, "AP50": 6.0}
    assert results["refinement"]["number"] == 0


def test_what_only_one_side_has_is_reported_without_a_gain():
    evaluator = RefinementEvaluator(LevelEvaluator(), CountingEvaluator())
    evaluator.reset()
    results = evaluator.evaluate()
    assert results["segm_levels_before"] == {"exact": 5.0}
    assert "segm_levels" not in results and "segm_levels_gain" not in results


def test_refined_outputs_survive_saving():
    sem_seg = torch.full((3, 2, 2), 0.05)
    sem_seg[1, 0] = 0.5
    refined = {
        "sem_seg": sem_seg.flip(1),
        "before": {"sem_seg": sem_seg},
        "refinements": [refinement("mask", 0.125, 0.75, box=[0, 0, 999, 500])],
    }
    saved = decode_output(json.loads(json.dumps(encode_output(refined, "semantic"))))
    assert saved["sem_seg_labels"].tolist() == [[0, 0], [1, 1]]
    assert saved["before"]["sem_seg_labels"].tolist() == [[1, 1], [0, 0]]
    assert saved["refinements"] == refined["refinements"]


def test_a_reset_forgets(evaluator):
    evaluator.process([{}], [output(10, 14, refinement("mask", 0.1, 0.2))])
    evaluator.reset()
    results = evaluator.evaluate()
    assert results["segm"]["AP"] == 0
    assert results["refinement"]["number"] == 0


def test_the_log_says_what_chose_the_situations(evaluator, caplog):
    with caplog.at_level(logging.INFO):
        evaluator.process([{}], [output(0, 0, refinement("mask", 0.1, 0.2))])
        evaluator.evaluate()
    assert "situations chosen with ground truth; boxes of the targets" in caplog.text
    evaluator.reset()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        all_answers = refinement("mask", 0.1, 0.2, chosen_with="every answer")
        evaluator.process([{}], [output(0, 0, all_answers)])
        evaluator.evaluate()
    assert "every answer refined; boxes of the targets" in caplog.text
    assert how_chosen(False, "prior") == "every answer refined; boxes of the answers"


def test_outputs_without_refinement_are_refused(evaluator):
    with pytest.raises(ValueError, match="TEST.REFINEMENT.ENABLED"):
        evaluator.process([{}], [{"number": 1}])


def test_statistics_of_hand_made_refinements():
    metrics = refinement_metrics(
        [
            refinement("mask", 0.4, 0.8),
            refinement("mask", 0.6, 0.5),
            refinement("category", 0.5, 0.5, class_after=3, target_class=3),
            refinement("category", 0.5, 0.7, class_after=-1, target_class=-1),
            refinement("missed", 0.0, 0.5),
        ]
    )
    assert (metrics["number"], metrics["number-mask"], metrics["number-missed"]) == (5, 2, 1)
    assert metrics["share_worse"] == pytest.approx(20.0)
    assert metrics["share_better"] == pytest.approx(60.0)
    assert metrics["mean_iou_before"] == pytest.approx(40.0)
    assert metrics["mean_iou_after"] == pytest.approx(60.0)
    assert metrics["mean_iou_after-mask"] == pytest.approx(65.0)
    assert metrics["name_corrected"] == pytest.approx(50.0)


def test_nothing_refined_gives_nan_and_no_error():
    metrics = refinement_metrics([])
    assert metrics["number"] == 0
    assert math.isnan(metrics["share_worse"]) and math.isnan(metrics["name_corrected"])


def test_gains_are_of_common_metrics_only():
    assert metric_gains({"AP": 1.0}, {"AP": 3.0, "new": 2.0}) == {"AP": 2.0}


@pytest.fixture
def build():
    """An evaluator factory that notes the folders it is asked for."""
    folders = []

    def make(cfg, dataset_name, output_dir):
        folders.append(output_dir)
        return SimpleNamespace(dataset=dataset_name)

    make.folders = folders
    return make


def test_without_refinement_everything_is_as_it_was(tiny_cfg, toy_dataset, build):
    model = nn.Identity()
    assert build_evaluation_model(tiny_cfg, model) is model
    assert build_refinement_evaluator(tiny_cfg, toy_dataset, build).dataset == toy_dataset
    assert build.folders == [None]


def test_refinement_evaluates_twice_and_keeps_the_files_apart(tiny_cfg, toy_dataset, build):
    tiny_cfg.TEST.REFINEMENT.ENABLED = True
    tiny_cfg.OUTPUT_DIR = "somewhere"
    assert isinstance(build_refinement_evaluator(tiny_cfg, toy_dataset, build), RefinementEvaluator)
    assert build.folders == [f"somewhere/inference/{toy_dataset}/before", None]


def test_a_task_without_refinement_is_evaluated_once(tiny_cfg, build):
    tiny_cfg.TEST.REFINEMENT.ENABLED = True
    MetadataCatalog.get("refinement_test_panoptic").evaluator_type = "coco_panoptic_seg"
    evaluator = build_refinement_evaluator(tiny_cfg, "refinement_test_panoptic", build)
    assert evaluator.dataset == "refinement_test_panoptic"
    MetadataCatalog.remove("refinement_test_panoptic")


def test_the_wrapper_reads_its_settings(tiny_cfg):
    refinement = tiny_cfg.TEST.REFINEMENT
    refinement.ENABLED = True
    refinement.ROUNDS, refinement.WORST_CLASSES, refinement.MAX_INSTANCES = 3, 2, 4
    refinement.RECALL_THRESH, refinement.CONFUSION_SHARE, refinement.IOU_THRESH = 0.1, 0.6, 0.4
    refinement.WITHIN_BOX = False
    wrapper = build_evaluation_model(tiny_cfg, nn.Identity())
    assert isinstance(wrapper, ROSEWithRefinement)
    settings = wrapper.settings
    assert (settings.rounds, settings.worst_classes, settings.max_instances) == (3, 2, 4)
    assert (settings.recall_threshold, settings.confusion_share) == (0.1, 0.6)
    assert settings.iou_threshold == 0.4
    assert not settings.within_box
    assert wrapper.batch_size == tiny_cfg.TEST.IMS_PER_BATCH
