"""Evaluators by dataset type."""

from rose_d2.evaluation.build import build_evaluator
from rose_d2.evaluation.category_evaluation import CategoryNameEvaluator
from rose_d2.evaluation.dense_evaluation import (
    RoseCOCOEvaluator,
    RosePanopticEvaluator,
    RoseSemSegEvaluator,
)
from rose_d2.evaluation.referring_evaluation import RefCOCOEvaluator

__all__ = [
    "CategoryNameEvaluator",
    "RefCOCOEvaluator",
    "RoseCOCOEvaluator",
    "RosePanopticEvaluator",
    "RoseSemSegEvaluator",
    "build_evaluator",
]
