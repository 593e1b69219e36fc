import torch

from rose_d2.structures.patches import ImageFeatures, stack_features


def features(value):
    return ImageFeatures(torch.full((9, 4), value), torch.full((2, 3, 3), value))


def test_features_of_all_images_are_batched_in_order():
    patches, sam = stack_features([features(1.0), features(2.0)])
    assert (patches.shape, sam.shape) == ((2, 9, 4), (2, 2, 3, 3))
    assert patches[:, 0, 0].tolist() == sam[:, 0, 0, 0].tolist() == [1.0, 2.0]


def test_a_batch_with_a_gap_is_encoded_whole():
    assert stack_features([features(1.0), None]) == (None, None)
    assert stack_features([None]) == (None, None)
    assert stack_features([]) == (None, None)
