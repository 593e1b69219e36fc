"""The four projectors and how they learn a patch's role."""

import pytest
import torch

from rose_d2.modeling.backbone.lmm import LMMOutput
from rose_d2.modeling.patch_analyzer import (
    LETTERS,
    MLP,
    ROLES,
    StandardPatchAnalyzer,
    SuperPatchLayout,
)
from rose_d2.structures.patches import PatchGrid

PAPER = ["sms", "mlm", "sts"]
BOUNDS = (32.0, 96.0)


def build(role_conditioning):
    torch.manual_seed(0)
    return StandardPatchAnalyzer(
        grid=PatchGrid(3, 14),
        layout=SuperPatchLayout(["sms", "mlm", "sts"], (32.0, 96.0)),
        input_dim=8,
        hidden_dim=12,
        prompt_dim=4,
        siglip_dim=5,
        role_conditioning=role_conditioning,
    )


def propose(analyzer, features):
    return analyzer.propose(LMMOutput(features, *[torch.zeros(0)] * 4))


@pytest.mark.parametrize("conditioning", ["embedding", "separate_heads", "none"])
def test_shapes_and_gradients(conditioning):
    analyzer = build(conditioning)
    proposals = propose(analyzer, torch.randn(2, 9, 8))
    assert proposals.objectness_logits.shape == (2, 9)
    chosen = analyzer.embed(proposals, 1, torch.tensor([4, 0, 4]))
    assert chosen.mask_embeddings.shape == (3, 4)
    assert chosen.category_embeddings.shape == (3, 8)
    assert chosen.siglip_embeddings.shape == (3, 5)
    torch.testing.assert_close(chosen.mask_embeddings[0], chosen.mask_embeddings[2])
    total = proposals.objectness_logits.sum() + sum(
        e.sum()
        for e in (chosen.mask_embeddings, chosen.category_embeddings, chosen.siglip_embeddings)
    )
    total.backward()
    assert all(p.grad is not None for p in analyzer.parameters())


def test_equal_features_differ_by_role_only_after_training_the_embedding():
    analyzer = build("embedding")
    same = torch.ones(1, 9, 8)
    logits = propose(analyzer, same).objectness_logits[0]
    torch.testing.assert_close(logits, logits[:1].expand(9))  # zero-initialised
    with torch.no_grad():
        analyzer.role_embedding[2] = 1.0  # large, patch 4 only
    changed = propose(analyzer, same).objectness_logits[0]
    assert (changed != logits).nonzero().flatten().tolist() == [4]


def test_separate_heads_give_each_role_its_own_answer():
    logits = propose(build("separate_heads"), torch.ones(1, 9, 8)).objectness_logits[0]
    small, medium, large, stuff = logits[0], logits[1], logits[4], logits[7]
    assert len({float(x) for x in (small, medium, large, stuff)}) == 4
    torch.testing.assert_close(logits[[0, 2, 6, 8]], small.expand(4))


def test_unknown_conditioning_is_refused():
    with pytest.raises(ValueError, match="separate_heads"):
        build("magic")


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


def test_mlp_is_linear_relu_linear():
    mlp = MLP(2, 3, 1)
    first, _, last = mlp.layers
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        first.bias.zero_()
        last.weight.copy_(torch.tensor([[1.0, 2.0, 4.0]]))
        last.bias.fill_(0.5)
    out = mlp(torch.tensor([[[1.0, 3.0], [-1.0, -2.0]]]))
    torch.testing.assert_close(out, torch.tensor([[[7.5], [12.5]]]))
