"""LoRA: where it sits, what merging gives, and the four settings of Table 5."""

import pytest
import torch
from detectron2.config import get_cfg
from peft.tuners.lora import LoraLayer

from rose_d2.config.defaults import add_rose_config
from rose_d2.modeling.backbone.llava_builders import add_lora, build_llava, merge_lora

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(cfg, **lora):
    """A tiny LLaVA whose adapters are not zero."""
    for key, value in lora.items():
        setattr(cfg.MODEL.LORA, key, value)
    cfg.MODEL.LMM.TEXT_CONFIG.vocab_size = 50
    torch.manual_seed(0)
    model = build_llava(cfg)
    add_lora(model, cfg.MODEL.LORA)
    model.eval()  # also the adapters' dropout
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def states(model):
    torch.manual_seed(1)
    words = torch.randn(1, 5, 32, dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        return model.model.language_model(inputs_embeds=words).last_hidden_state


def test_merging_changes_no_output_and_leaves_no_adapter(tiny_cfg):
    model = adapted(tiny_cfg)
    before = states(model)
    model.model.language_model.layers[0].self_attn.q_proj.lora_B["default"].weight.data += 0.1
    assert not torch.allclose(states(model), before, atol=1e-3)  # the adapters do matter
    before = states(model)
    assert merge_lora(model) == 2 * 7
    torch.testing.assert_close(states(model), before, atol=1e-5, rtol=1e-5)
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    assert not hasattr(model, "peft_config")
    assert merge_lora(model) == 0


def test_merging_rounds_once(tiny_cfg):
    model = adapted(tiny_cfg.clone(), ALPHA=24).bfloat16()
    layer = model.model.language_model.layers[1].mlp.up_proj
    product = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
    expected = (layer.base_layer.weight.float() + 3.0 * product).bfloat16()  # 3 = 24 / 8
    merge_lora(model)
    merged = model.model.language_model.layers[1].mlp.up_proj.weight
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, expected)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"TARGET_MODULES": ["q_proj", "qproj"]}, r"TARGET_MODULES has \['qproj'\].*'down_proj'"),
        ({"TARGET_MODULES": ["out_proj"]}, "out_proj"),  # SigLIP's, not the language model's
        ({"TARGET_MODULES": []}, "has nothing in it"),
        ({"RANK": 0}, "RANK is 0; use 1 or more"),
    ],
)
def test_settings_that_would_adapt_less_than_asked_are_refused(tiny_cfg, lora, message):
    with pytest.raises(ValueError, match=message):
        adapted(tiny_cfg, **lora)


# Parameters at rank 8 on Qwen2-7B, 28 layers: q is 3584 x 3584, k and v 3584 x 512, the MLP's three
# 3584 x 18944.
Q_K = 28 * 8 * ((3584 + 3584) + (3584 + 512))
EVERY = 28 * 8 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))


@pytest.mark.parametrize("modules", ["qk", "all"])
def test_table_5_has_its_four_settings(modules):
    targets, count = {"qk": (["q_proj", "k_proj"], Q_K), "all": (ALL, EVERY)}[modules]
    for alpha in (16, 32):
        cfg = get_cfg()
        add_rose_config(cfg)
        cfg.merge_from_file(f"configs/ablations/lora_{modules}_alpha{alpha}.yaml")
        lora = cfg.MODEL.LORA
        found = (lora.TARGET_MODULES, lora.ALPHA, lora.ENABLED)
        assert found == (targets, alpha, True)
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (10000, 0.003)
        assert cfg.OUTPUT_DIR.endswith(f"lora_{modules}_alpha{alpha}")
    with torch.device("meta"):
        model = build_llava(cfg)
        add_lora(model, cfg.MODEL.LORA)
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == count
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert {layer.scaling["default"] for layer in layers} == {32 / 8}
