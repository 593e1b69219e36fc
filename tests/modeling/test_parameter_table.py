"""The start-up table: every parameter once, in its part."""

import torch
from detectron2.modeling import build_model
from torch import nn

from rose_d2.modeling.parameter_table import format_parameter_table, part_sizes


def recipe(cfg):
    """What the paper trains, on the tiny model."""
    for part in cfg.MODEL.TRAINABLE:
        cfg.MODEL.TRAINABLE[part] = part in (
            "PATCH_EMBED", "EMBED_TOKENS", "LM_HEAD", "HEADS", "SAM_MASK_DECODER"
        )  # fmt: skip
    cfg.MODEL.LORA.ENABLED = True
    return cfg


def test_rows_add_up_and_follow_the_recipe(tiny_cfg):
    model = build_model(recipe(tiny_cfg))
    sizes = {size.part: size for size in part_sizes(model)}
    assert sum(s.total for s in sizes.values()) == sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(s.trainable for s in sizes.values()) == trained
    # For each of 32 channels 785 weights (4 x 14 x 14 and a bias) and 36 patch positions.
    assert sizes["patch_embed"].total == sizes["patch_embed"].trainable == (785 + 36) * 32
    assert sizes["vision_tower"].trainable == 0 and sizes["vision_tower"].total > 0
    # Two layers; q, k, v, o are 32 x 32, gate, up, down join 32 and 64: rank 8 on both sides.
    assert sizes["lora"].total == sizes["lora"].trainable == 2 * 8 * (4 * 64 + 3 * 96)
    assert sizes["unused"].trainable == 0


def test_tied_pair_counts_once_and_dtypes_are_named(tiny_cfg):
    tiny_cfg.MODEL.LMM.TEXT_CONFIG.tie_word_embeddings = True
    tiny_cfg.MODEL.LMM.DTYPE = "bfloat16"
    model = build_model(recipe(tiny_cfg))
    sizes = {size.part: size for size in part_sizes(model)}
    assert sizes["embed_tokens"].total == len(model.backbone.tokenizer) * 32
    assert sizes["lm_head"].total == 0
    assert sizes["embed_tokens"].dtypes == "bfloat16" and sizes["heads"].dtypes == "float32"


def test_shared_parameter_belongs_to_the_first_part_that_has_it():
    class Model(nn.Linear):
        def parts(self):
            named = list(self.named_parameters())
            return {"embed_tokens": named, "lm_head": named[:1]}

    assert [(s.part, s.total) for s in part_sizes(Model(3, 2))] == [
        ("embed_tokens", 8),
        ("lm_head", 0),
    ]


def test_text_has_a_row_per_part_and_the_sum(tiny_cfg):
    model = build_model(recipe(tiny_cfg))
    lines = format_parameter_table(part_sizes(model)).splitlines()
    assert [word.strip() for word in lines[0].strip("|").split("|")] == [
        "part", "parameters", "trainable", "dtype"
    ]  # fmt: skip
    cells = [word.strip() for word in lines[-1].strip("|").split("|")]
    assert cells[0] == "all"
    assert cells[1] == f"{sum(p.numel() for p in model.parameters()):,}"


def test_parameters_that_zero_has_divided_count_as_whole(tiny_model):
    before = {size.part: size.total for size in part_sizes(tiny_model)}
    for parameter in tiny_model.parameters():
        parameter.ds_numel = parameter.numel()
        parameter.data = torch.empty(0)
    assert {size.part: size.total for size in part_sizes(tiny_model)} == before
