"""What the training half makes of datasets and names."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage

from rose_d2.modeling.supervision import NO_TARGET_NAME
from rose_d2.structures.category_names import CategoryNames


def test_bank_is_the_vocabulary_without_held_out_classes(tiny_model):
    name = "rose_test_held_out"
    MetadataCatalog.get(name).set(
        thing_classes=["dog", "blue car", "dog"], evaluator_type="coco", unseen_classes=["blue car"]
    )
    bank = tiny_model.supervisor._bank_names
    assert bank(name, CategoryNames(["dog"])) == ("dog",)
    # A name outside the vocabulary and the dummy of an image without target are added.
    assert bank(name, CategoryNames(["zebra", ""])) == ("dog", "zebra", NO_TARGET_NAME)


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
