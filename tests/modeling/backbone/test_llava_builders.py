"""Building, loading and saving LLaVA-OneVision."""

import importlib.util
import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration

from rose_d2.config.defaults import add_rose_config
from rose_d2.modeling.backbone.llava_builders import (
    PatchPositions,
    add_lora,
    build_llava,
    merge_lora,
    save_llava,
    sine_cosine_positions,
    widen_patch_embedding,
)

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Parameters at rank 8 on Qwen2-7B, 28 layers: q is 3584 x 3584, k and v 3584 x 512, the MLP's three
# 3584 x 18944.
Q_K = 28 * 8 * ((3584 + 3584) + (3584 + 512))
EVERY = 28 * 8 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))


def build(cfg, **lmm):
    for key, value in lmm.items():
        setattr(cfg.MODEL.LMM, key, value)
    torch.manual_seed(0)
    return build_backbone(cfg).eval()


def saved_names(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("tied", [True, False])
def test_saved_folder_is_an_ordinary_one(tiny_cfg, tmp_path, tied):
    tiny_cfg.MODEL.LMM.TEXT_CONFIG.tie_word_embeddings = tied
    backbone = build(tiny_cfg)
    convolution = backbone.vision_tower.embeddings.patch_embedding
    with torch.no_grad():
        convolution.weight[:, 3] = 0.5  # what the mask channel learnt stays out of the folder
    save_llava(backbone.model, backbone.tokenizer, tmp_path)
    ends = ("embed_tokens.weight", "lm_head.weight")
    assert sum(name.endswith(ends) for name in saved_names(tmp_path)) == (1 if tied else 2)
    loaded, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    shared = loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert shared == tied
    own = backbone.model.state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(
            value, own[name][:, :3] if "patch_embedding.weight" in name else own[name]
        )
    again = build(tiny_cfg, PRETRAINED=str(tmp_path), TOKENIZER="")
    assert again.is_tied == tied
    words = "There are 2 dog, 1 red car in this image."
    assert again.tokenizer.encode(words) == backbone.tokenizer.encode(words)
    assert backbone.vision_tower.embeddings.patch_embedding.weight.shape[1] == 4


def test_sdpa_is_the_default_and_attention_can_be_chosen(tiny_cfg):
    def implementations(backbone):
        config = backbone.model.config
        return [
            getattr(config, part)._attn_implementation for part in ("vision_config", "text_config")
        ]

    default = build(tiny_cfg)
    assert implementations(default) == ["sdpa", "sdpa"]
    eager = build(tiny_cfg, ATTENTION="eager")
    assert implementations(eager) == ["eager", "eager"]
    image, prior = torch.rand(1, 3, 84, 84) * 255, torch.zeros(1, 1, 84, 84)
    with torch.no_grad():
        torch.testing.assert_close(
            default.encode_image(image, prior), eager.encode_image(image, prior)
        )
    with pytest.raises(ValueError, match="'fast'; allowed are sdpa, eager, flash_attention_2"):
        build(tiny_cfg, ATTENTION="fast")


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is here")
def test_missing_flash_attention_is_one_sentence(tiny_cfg):
    with pytest.raises(ValueError, match="needs the package flash-attn and a GPU.*or use sdpa"):
        build(tiny_cfg, ATTENTION="flash_attention_2")


@pytest.mark.parametrize(("kind", "off"), [("int8", 0.02), ("nf4", 0.2)])
def test_the_language_model_alone_is_quantised(tiny_cfg, tmp_path, kind, off):
    """On the CPU, whose kernels bitsandbytes has too; what it answers stays near."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra quantize is not installed")
    whole = build(tiny_cfg)
    save_llava(whole.model, whole.tokenizer, tmp_path)
    small = build(tiny_cfg, PRETRAINED=str(tmp_path), TOKENIZER="", QUANTIZE=kind)
    layer = {"int8": bitsandbytes.nn.Linear8bitLt, "nf4": bitsandbytes.nn.Linear4bit}[kind]
    changed = {name for name, module in small.named_modules() if isinstance(module, layer)}
    linear = {name for name, module in whole.named_modules() if type(module) is nn.Linear}
    assert changed == {name for name in linear if ".language_model.layers." in name} != set()
    words = torch.randn(1, 9, whole.hidden_size)
    with torch.no_grad():
        expected, states = whole.run_text(words), small.run_text(words)
    assert 0 < (states - expected).norm() / expected.norm() < off


def test_random_weights_are_not_quantised(tiny_cfg):
    with pytest.raises(ValueError, match="QUANTIZE is nf4, .*PRETRAINED as .* exported folder"):
        build(tiny_cfg, QUANTIZE="nf4")


def test_a_missing_library_is_one_sentence(tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match=r"QUANTIZE int8 needs .*rose_d2\[quantize\]"):
        build(tiny_cfg, PRETRAINED=str(tmp_path), TOKENIZER="tiny", QUANTIZE="int8")


@pytest.mark.parametrize("source", ["output/not/there", "./lmm", "/nowhere"])
def test_missing_folder_is_told_from_a_hub_name(tiny_cfg, source):
    with pytest.raises(ValueError, match=f"{source} is no folder here"):
        build(tiny_cfg, PRETRAINED=source, TOKENIZER="tiny")


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


@pytest.mark.parametrize("modules", ["qk", "all"])
def test_table_5_has_its_four_settings(modules):
    targets, count = {"qk": (["q_proj", "k_proj"], Q_K), "all": (ALL, EVERY)}[modules]
    for alpha in (16, 32):
        cfg = get_cfg()
        add_rose_config(cfg)
        cfg.merge_from_file(f"configs/ablations/table5_{modules}_alpha{alpha}.yaml")
        lora = cfg.MODEL.LORA
        found = (lora.TARGET_MODULES, lora.ALPHA, lora.ENABLED)
        assert found == (targets, alpha, True)
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (10000, 0.003)
        assert cfg.OUTPUT_DIR.endswith(f"table5_{modules}_alpha{alpha}")
    with torch.device("meta"):
        model = build_llava(cfg)
        add_lora(model, cfg.MODEL.LORA)
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == count
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert {layer.scaling["default"] for layer in layers} == {32 / 8}


def test_fourth_channel_changes_nothing_at_first_and_can_learn():
    torch.manual_seed(0)
    original = nn.Conv2d(3, 5, 14, stride=14)
    widened = widen_patch_embedding(original)
    image = torch.randn(2, 3, 28, 28)
    for mask in (torch.zeros(2, 1, 28, 28), torch.ones(2, 1, 28, 28)):
        torch.testing.assert_close(widened(torch.cat([image, mask], 1)), original(image))
    widened(torch.cat([image, torch.ones(2, 1, 28, 28)], 1)).sum().backward()
    assert widened.weight.grad[:, 3].abs().min() > 0


def test_widening_twice_is_refused():
    with pytest.raises(ValueError, match="got 4"):
        widen_patch_embedding(widen_patch_embedding(nn.Conv2d(3, 5, 14, stride=14)))


def test_inner_products_depend_on_the_offset_only():
    positions = sine_cosine_positions(5, 16)
    assert positions.shape == (25, 16)
    products = positions @ positions.T
    # One step right, one step down, and a knight's move, from two places each.
    for first, second in (((0, 1), (12, 13)), ((0, 5), (12, 17)), ((0, 7), (12, 19))):
        torch.testing.assert_close(products[first], products[second])
    assert products[12].argmax() == 12


def test_every_patch_has_a_place_of_its_own():
    positions = sine_cosine_positions(48, 128)
    distances = torch.cdist(positions, positions)
    distances.fill_diagonal_(distances.max())
    assert distances.min() > 0.5


def test_a_width_without_room_for_the_waves_is_refused():
    with pytest.raises(ValueError, match=r"hidden_size .* is 18"):
        sine_cosine_positions(4, 18)


def test_an_unpretrained_model_starts_from_them(tiny_cfg):
    positions = build_backbone(tiny_cfg).vision_tower.embeddings.position_embedding.weight
    expected = sine_cosine_positions(tiny_cfg.MODEL.LMM.IMAGE_SIZE // 14, positions.shape[1])
    assert torch.equal(positions, expected)


def test_patch_positions_are_added_to_the_projected_patches(tiny_cfg):
    tiny_cfg.MODEL.LMM.PATCH_POSITIONS = False
    plain = build_backbone(tiny_cfg).eval()
    assert not list(plain.patch_positions.parameters())
    tiny_cfg.MODEL.LMM.PATCH_POSITIONS = True
    backbone = build_backbone(tiny_cfg).eval()
    assert isinstance(backbone.patch_positions, PatchPositions)
    weight = backbone.patch_positions.weight
    side = tiny_cfg.MODEL.LMM.IMAGE_SIZE // 14
    assert torch.equal(weight, sine_cosine_positions(side, backbone.hidden_size))
    assert any(parameter is weight for _, parameter in backbone.parts()["patch_embed"])
    backbone.load_state_dict(plain.state_dict(), strict=False)
    size = tiny_cfg.MODEL.LMM.IMAGE_SIZE
    images, masks = torch.rand(2, 3, size, size) * 255, torch.zeros(2, 1, size, size)
    with torch.no_grad():
        difference = backbone.encode_image(images, masks) - plain.encode_image(images, masks)
    torch.testing.assert_close(difference, weight.detach().expand(2, -1, -1), atol=1e-5, rtol=0)
