from types import SimpleNamespace

import pytest
from detectron2.data import MetadataCatalog
from torch import nn

from rose_d2.refinement.evaluation import (
    RefinementEvaluator,
    build_evaluation_model,
    build_refinement_evaluator,
)
from rose_d2.refinement.rose_with_refinement import ROSEWithRefinement


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
