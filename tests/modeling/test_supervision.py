"""What the training half makes of datasets and names."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rose_d2.modeling.supervision import NO_TARGET_NAME
from rose_d2.structures.category_names import CategoryNames

TASKS = ("instance", "referring", "panoptic", "refinement", "region", "semantic")


def test_bank_is_the_vocabulary_without_held_out_classes(tiny_model):
    name = "rose_test_held_out"
    MetadataCatalog.get(name).set(
        thing_classes=["dog", "blue car", "dog"], evaluator_type="coco", unseen_classes=["blue car"]
    )
    bank = tiny_model.supervisor._bank_names
    assert bank(name, CategoryNames(["dog"])) == ("dog",)
    # A name outside the vocabulary and the dummy of an image without target are added.
    assert bank(name, CategoryNames(["zebra", ""])) == ("dog", "zebra", NO_TARGET_NAME)


def test_only_an_image_with_one_asked_object_is_ranked(tiny_cfg, make_input):
    tiny_cfg.MODEL.ROSE.LOSS_WEIGHT.RANKING = 1.0
    torch.manual_seed(0)
    model = build_model(tiny_cfg).train()
    one = make_input()["instances"][:1]
    rival = torch.tensor([[50.0, 64.0]])
    items = [make_input(task, instances=one, negative_points=rival) for task in TASKS]
    with EventStorage():
        losses = model(items)
    ranked = model.image_losses["loss_ranking"] > 0
    assert ranked.tolist() == [task in ("referring", "refinement", "region") for task in TASKS]
    losses["loss_ranking"].backward()
    assert any(p.grad.any() for p in model.patch_analyzer.objectness.parameters())


def test_loss_terms_of_each_image_are_kept(tiny_model, make_input):
    items = [make_input(), make_input("panoptic", response="There are 2 dog in this image.")]
    torch.manual_seed(0)
    with EventStorage():
        losses = tiny_model.train()(items)
    kept = tiny_model.image_losses
    assert set(kept) == set(losses)
    for name, values in kept.items():
        assert values.shape == (2,) and not values.requires_grad
        assert values.mean().item() == pytest.approx(losses[name].item())
    assert kept["loss_text"][0] != kept["loss_text"][1]
