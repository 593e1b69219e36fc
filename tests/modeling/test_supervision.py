"""What the training half makes of datasets and names."""

from detectron2.data import MetadataCatalog

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
