"""Building, loading and saving LLaVA-OneVision."""

import importlib.util

import pytest
import torch
from detectron2.modeling import build_backbone
from safetensors import safe_open
from transformers import LlavaOnevisionForConditionalGeneration

from rose_d2.modeling.backbone.llava_builders import save_llava


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


@pytest.mark.parametrize("source", ["output/not/there", "./lmm", "/nowhere"])
def test_missing_folder_is_told_from_a_hub_name(tiny_cfg, source):
    with pytest.raises(ValueError, match=f"{source} is no folder here"):
        build(tiny_cfg, PRETRAINED=source, TOKENIZER="tiny")
