"""CategoryNames behaves like a tensor of strings inside Instances."""

import pytest
import torch
from detectron2.structures import Instances

from rose_d2.structures.category_names import CategoryNames

NAMES = CategoryNames(["dog", "cat", "red car"])


def test_instances_can_filter_and_concatenate_names():
    instances = Instances((4, 4), names=NAMES, scores=torch.tensor([0.1, 0.9, 0.5]))
    kept = instances[instances.scores > 0.3]
    assert list(kept.names) == ["cat", "red car"]
    both = Instances.cat([kept, instances])
    assert list(both.names) == ["cat", "red car", "dog", "cat", "red car"]
    assert list(instances[torch.tensor([2, 0])].to("cpu").names) == ["red car", "dog"]


def test_indexing_with_int_slice_and_nothing():
    assert NAMES[1] == "cat"
    assert NAMES[1:] == CategoryNames(["cat", "red car"])
    assert len(NAMES[torch.zeros(3, dtype=torch.bool)]) == 0
    assert len(NAMES[torch.tensor([], dtype=torch.long)]) == 0


def test_mistakes_are_refused():
    with pytest.raises(TypeError, match="not one string"):
        CategoryNames("dog")
    with pytest.raises(TypeError, match="strings only"):
        CategoryNames([1])
    with pytest.raises(IndexError, match="mask of 2"):
        NAMES[torch.tensor([True, False])]
