"""Scores of images by their number of objects, on answers written by hand."""

import pytest
import torch
from detectron2.structures import Instances
from torch import nn

from rose_d2.evaluation.object_counts import (
    ImageScore,
    counted_passes,
    means_by_count,
    score_by_count,
)
from rose_d2.structures.category_names import CategoryNames
from rose_d2.structures.mask_codec import encode_masks

SIZE = (10, 20)


def box(x1, x2):
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[:, x1:x2] = True
    return mask


class Answering(nn.Module):
    """Answers with the same predictions: mask, name, score."""

    def __init__(self, *rows):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.forward = self.backbone.read_prompt = self.backbone.run_text = int
        self.rows = rows

    def forward(self, items):
        self.backbone.run_text()
        self.backbone.run_text()
        instances = Instances(SIZE)
        instances.pred_masks = torch.stack([mask for mask, _, _ in self.rows])
        instances.pred_category_names = CategoryNames([name for _, name, _ in self.rows])
        instances.scores = torch.tensor([score for _, _, score in self.rows])
        return [{"instances": instances}]


@pytest.fixture
def record():
    masks = encode_masks(torch.stack([box(0, 8), box(10, 20)]))
    annotations = [
        {"segmentation": code, "category_id": number, "iscrowd": 0, "bbox": [0, 0, 1, 1]}
        for number, code in enumerate(masks)
    ]
    return {"height": 10, "width": 20, "annotations": annotations}


def test_as_many_predictions_count_as_there_are_objects(record):
    good_but_third = (box(10, 20), "cat", 0.1)
    model = Answering((box(0, 8), "dog", 0.9), (box(0, 4), "dog", 0.8), good_but_third)
    (score,) = score_by_count(model, [record], dict, ["dog", "cat"])
    assert (score.objects, score.passes) == (2, 2)
    assert score.iou == pytest.approx(0.5) and score.name_exact == 0.5
    better = Answering(good_but_third, (box(0, 8), "cow", 0.9))
    (score,) = score_by_count(better, [record], dict, ["dog", "cat"])
    assert score.iou == 1 and score.name_exact == 0.5  # the dog is called a cow


def test_images_without_objects_are_left_out(record):
    empty = {**record, "annotations": []}
    assert score_by_count(Answering(), [empty], dict, []) == []


def test_means_are_over_images_with_equally_many_objects():
    scores = [ImageScore(3, 0.5, 0, 9, 1), ImageScore(1, 1, 1, 4, 2), ImageScore(3, 1, 0.5, 4, 3)]
    one, three = means_by_count(scores)
    assert (one["objects"], one["images"], one["iou"]) == (1, 1, 1)
    assert (three["objects"], three["images"], three["passes"]) == (3, 2, 6.5)
    assert three["iou"] == 0.75 and three["name_exact"] == 0.25 and three["seconds"] == 2


def test_passes_of_a_real_model_are_counted_and_its_methods_stay(tiny_model, make_input):
    lmm = tiny_model.eval().backbone
    with torch.no_grad(), counted_passes(lmm) as passes:
        tiny_model([make_input()])
    assert passes[0] == "forward" and passes.count("run_text") >= 2
    assert "forward" not in vars(lmm) and "run_text" not in vars(lmm)
