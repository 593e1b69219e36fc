"""Roles of patches and objects, by hand."""

import pytest
import torch

from rose_d2.modeling.patch_analyzer import LETTERS, ROLES, SuperPatchLayout
from rose_d2.structures.patches import PatchGrid

PAPER = ["sms", "mlm", "sts"]
BOUNDS = (32.0, 96.0)


def spell(roles):
    """Role ids as one string of layout letters."""
    letter_of = {role: letter for letter, role in LETTERS.items()}
    return "".join(letter_of[int(role)] for role in roles)


def test_paper_layout_on_a_6_by_6_grid():
    roles = SuperPatchLayout(PAPER, BOUNDS).role_of_patches(PatchGrid(6, 14))
    rows = [spell(row) for row in roles.view(6, 6)]
    assert rows == ["smssms", "mlmmlm", "stssts"] * 2


def test_every_window_has_four_small_three_medium_one_large_one_stuff():
    grid = PatchGrid(7, 14)  # not a multiple of three
    roles = SuperPatchLayout(PAPER, BOUNDS).role_of_patches(grid)
    for row in range(5):
        for column in range(5):
            window = roles.view(7, 7)[row : row + 3, column : column + 3].flatten()
            assert sorted(spell(window)) == sorted("ssssmmmlt")


@pytest.mark.parametrize(
    ("side", "is_stuff", "role"),
    [
        (31.9, False, "small"),
        (32.0, False, "medium"),
        (95.9, False, "medium"),
        (96.0, False, "large"),
        (5.0, True, "stuff"),
        (500.0, True, "stuff"),
    ],
)
def test_role_follows_scale_and_kind(side, is_stuff, role):
    layout = SuperPatchLayout(PAPER, BOUNDS)
    roles = layout.role_of_objects(torch.tensor([side**2]), torch.tensor([is_stuff]))
    assert ROLES[int(roles[0])] == role


def test_any_layout_has_one_role_for_all():
    layout = SuperPatchLayout(["a"], BOUNDS)
    assert set(spell(layout.role_of_patches(PatchGrid(4, 14)))) == {"a"}
    roles = layout.role_of_objects(torch.tensor([1.0, 1e6]), torch.tensor([False, True]))
    assert spell(roles) == "aa"


def test_role_missing_in_the_layout_falls_back_to_a_smaller_one():
    layout = SuperPatchLayout(["sm", "ms"], BOUNDS)
    roles = layout.role_of_objects(torch.tensor([1e6, 1e6]), torch.tensor([False, True]))
    assert spell(roles) == "mm"


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "not a square"), (["sm"], "not a square"), (["x"], "letters"), (["am", "ms"], "letters")],
)
def test_bad_layouts_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        SuperPatchLayout(rows, BOUNDS)


def test_bounds_must_ascend():
    with pytest.raises(ValueError, match="ascend"):
        SuperPatchLayout(PAPER, (96.0, 32.0))
