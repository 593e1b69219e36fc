"""The four projectors and how they learn a patch's role."""

import pytest
import torch

from rose_d2.modeling.backbone.lmm import LMMOutput
from rose_d2.modeling.patch_analyzer import StandardPatchAnalyzer, SuperPatchLayout
from rose_d2.structures.patches import PatchGrid


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
    return analyzer.propose(LMMOutput(features, *[torch.zeros(0)] * 3))


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
