"""Top-K selection with and without slots for stuff."""

import pytest
import torch

from rose_d2.modeling.assignment import patches_touching, select_patches
from rose_d2.structures.patches import PatchGrid

LOGITS = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.2])
ROLES = torch.tensor([3, 0, 3, 1, 3])  # 3 is stuff


def test_highest_objectness_first():
    assert select_patches(LOGITS, ROLES, 3).tolist() == [1, 3, 2]


def test_reserved_slots_go_to_the_best_stuff_patches():
    assert select_patches(LOGITS, ROLES, 3, top_k_stuff=2).tolist() == [1, 2, 4]
    assert select_patches(LOGITS, ROLES, 4, top_k_stuff=1).tolist() == [1, 3, 2, 4]


def test_more_slots_than_patches_keep_all():
    assert select_patches(LOGITS, None, 100).tolist() == [1, 3, 2, 4, 0]


def test_reserving_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="TOP_K_STUFF 4"):
        select_patches(LOGITS, ROLES, 3, top_k_stuff=4)


def test_patches_that_a_box_touches():
    grid = PatchGrid(side=3, patch_size=14)  # patches end at 333 and 666 of 999
    touched = patches_touching(grid, (100, 350, 600, 900)).nonzero().flatten().tolist()
    assert touched == [3, 4, 6, 7]
    assert patches_touching(grid, (500, 500, 500, 500)).nonzero().flatten().tolist() == [4]
    assert patches_touching(grid, (999, 999, 999, 999)).nonzero().flatten().tolist() == [8]
    assert patches_touching(grid, (0, 0, 999, 999)).all()
