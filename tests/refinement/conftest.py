"""A registered scene of 40 x 60 pixels, and a model whose answers are written by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn

from rose_d2.layers.masks import masks_to_boxes
from rose_d2.modeling.postprocessing import semantic_labels
from rose_d2.prompts.conversation import Conversation
from rose_d2.structures.category_names import CategoryNames

SIZE = (40, 60)
VIEW = 84
CLASSES = ["dog", "cat", "sky"]


def box_mask(x1, y1, x2, y2):
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


DOG, CAT = box_mask(0, 0, 20, 20), box_mask(30, 10, 60, 40)


def make_instances(*rows):
    """Instances from rows of (mask, class id, score)."""
    masks = torch.stack([mask for mask, *_ in rows])
    return Instances(
        SIZE,
        pred_masks=masks,
        pred_boxes=masks_to_boxes(masks),
        scores=torch.tensor([score for *_, score in rows]),
        pred_classes=torch.tensor([class_id for _, class_id, _ in rows]),
        pred_category_names=CategoryNames([CLASSES[class_id] for _, class_id, _ in rows]),
        name_scores=torch.ones(len(rows)),
    )


def semantic_output(sem_seg):
    """What the model says beside its scores (C, H, W)."""
    labels = semantic_labels(sem_seg, 0.05)
    return {"sem_seg": sem_seg, "sem_seg_labels": labels, "non_object_score": 0.05}


class ScriptedModel(nn.Module):
    """Gives its first answer to every first turn, and the next of its answers to every second."""

    def __init__(self, first, answers):
        super().__init__()
        self.first = first
        self.answers = iter(answers)
        self.turns = []
        self.batch_sizes = []

    def with_sam_features(self, batched_inputs):
        return batched_inputs

    def forward(self, batched_inputs):
        self.batch_sizes.append(len(batched_inputs))
        return [self._answer(item) for item in batched_inputs]

    def _answer(self, item):
        if item["task"] not in ("refinement", "region"):
            return self.first
        self.turns.append(item)
        mask, class_id, score = next(self.answers)
        return {
            "ref_seg": mask,
            "ref_patch": 3,
            "ref_score": score,
            "instances": make_instances((mask, class_id, score)),
        }


def _annotation(mask, class_id):
    rle = coco_mask.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
    return {"segmentation": rle, "category_id": class_id, "iscrowd": 0}


@pytest.fixture
def datasets(tmp_path):
    """Names of the scene as instance, semantic and referring dataset; image ids 1 and 2."""
    labels = torch.full(SIZE, 2)
    labels[DOG], labels[CAT], labels[39, 0] = 0, 1, 255
    Image.fromarray(labels.numpy().astype(np.uint8)).save(tmp_path / "labels.png")
    Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    records = [
        {
            "file_name": str(tmp_path / "image.png"),
            "sem_seg_file_name": str(tmp_path / "labels.png"),
            "image_id": number,
            "height": SIZE[0],
            "width": SIZE[1],
            "annotations": [_annotation(DOG, 0), _annotation(CAT, 1)],
        }
        for number in (1, 2)
    ]
    expressions = [
        {**records[0], "ref_id": 5, "sent_id": number, "sentence": "it", "target_indices": [number]}
        for number in (0, 1)
    ]
    kinds = {"coco": records, "sem_seg": records, "refcoco": expressions}
    names = {kind: f"refinement_test_{kind}" for kind in kinds}
    for kind, name in names.items():
        DatasetCatalog.register(name, lambda kind=kind: kinds[kind])
        MetadataCatalog.get(name).set(
            evaluator_type=kind,
            thing_classes=CLASSES[:2],
            stuff_classes=["dog, hound", "cat", "sky"],
            ignore_label=255,
        )
    yield names
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def make_item(datasets):
    """Build a first turn; keywords replace its entries."""

    def make(task, **entries):
        kind = {"semantic": "sem_seg", "referring": "refcoco"}.get(task, "coco")
        item = {
            "image": torch.zeros(3, VIEW, VIEW, dtype=torch.uint8),
            "sam_image": torch.zeros(3, 43, 64, dtype=torch.uint8),
            "height": SIZE[0],
            "width": SIZE[1],
            "file_name": "image.png",
            "image_id": 1,
            "dataset_name": datasets[kind],
            "task": task,
            "conversation": Conversation("Segment."),
        }
        return {**item, **entries}

    return make


@pytest.fixture
def scene():
    """What tests draw with."""
    return SimpleNamespace(
        dog=DOG,
        cat=CAT,
        box=box_mask,
        instances=make_instances,
        semantic=semantic_output,
        model=ScriptedModel,
        size=SIZE,
    )
