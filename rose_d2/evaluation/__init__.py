"""Evaluators by dataset type."""

from rose_d2.evaluation.build import build_evaluator
from rose_d2.evaluation.category_evaluation import CategoryNameEvaluator
from rose_d2.evaluation.instance_evaluation import RoseCOCOEvaluator
from rose_d2.evaluation.panoptic_evaluation import RosePanopticEvaluator
from rose_d2.evaluation.referring_evaluation import RefCOCOEvaluator
from rose_d2.evaluation.semantic_evaluation import RoseSemSegEvaluator

__all__ = [
    "CategoryNameEvaluator",
    "RefCOCOEvaluator",
    "RoseCOCOEvaluator",
    "RosePanopticEvaluator",
    "RoseSemSegEvaluator",
    "build_evaluator",
]
