"""The attention mask on a sequence small enough to write down."""

import torch

from rose_d2.modeling.backbone.llava_onevision import prefix_attention_mask

PROMPT, LENGTH = torch.tensor([3, 2]), torch.tensor([5, 3])


def drawn(mask):
    """Rows of x (may attend) and . (may not)."""
    return ["".join("x" if cell else "." for cell in row) for row in mask[0].tolist()]


def test_prompt_sees_itself_and_response_its_past():
    masks = prefix_attention_mask(PROMPT, LENGTH, 5, bidirectional=True)
    assert masks.shape == (2, 1, 5, 5)
    assert drawn(masks[0]) == ["xxx..", "xxx..", "xxx..", "xxxx.", "xxxxx"]
    # Two tokens of padding attend to themselves only.
    assert drawn(masks[1]) == ["xx...", "xx...", "xxx..", "...x.", "....x"]


def test_causal():
    masks = prefix_attention_mask(PROMPT, LENGTH, 5, bidirectional=False)
    assert drawn(masks[0]) == ["x....", "xx...", "xxx..", "xxxx.", "xxxxx"]
