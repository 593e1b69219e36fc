"""Exported folders compute what the model computed, and say what they are."""

import shutil

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from safetensors import safe_open
from scripts import load_script

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.checkpoint.export import (
    CardFacts,
    export_bases,
    export_merged,
    export_trainable,
    model_card,
)
from rose_d2.config.read import read_config, use_exported_folder

export_checkpoint = load_script("tools/export_checkpoint.py")


deviations, model_outputs = export_checkpoint.deviations, export_checkpoint.model_outputs


TRAINED = ("PATCH_EMBED", "EMBED_TOKENS", "LM_HEAD", "HEADS", "SAM_MASK_DECODER")


def make_bases(cfg, folder, tied=False):
    """Pretrained bases of random numbers, and the config of the paper's recipe on them."""
    cfg.MODEL.LMM.TEXT_CONFIG.tie_word_embeddings = tied
    torch.manual_seed(0)
    export_bases(build_model(cfg), folder)
    recipe = cfg.clone()
    recipe.MODEL.LMM.PRETRAINED, recipe.MODEL.LMM.TOKENIZER = str(folder / "lmm"), ""
    recipe.MODEL.MASK_HEAD.SAM_CHECKPOINT = str(folder / "sam.pth")
    recipe.MODEL.LORA.ENABLED = True
    for part in recipe.MODEL.TRAINABLE:
        recipe.MODEL.TRAINABLE[part] = part in TRAINED
    return recipe


def trained_model(cfg, folder):
    """A model whose trained parameters have all moved, and its checkpoint's weights file."""
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn_like(parameter))
    RoseCheckpointer(model, str(folder)).save("model_final")
    return model, str(folder / "model_final" / "model.safetensors")


def load(config_file, weights, *opts):
    cfg = read_config(str(config_file), ["MODEL.WEIGHTS", str(weights), *opts])
    torch.manual_seed(2)  # nothing of the result may come from random numbers
    model = build_model(cfg)
    RoseCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return cfg, model


def names_in(file):
    with safe_open(file, framework="pt") as opened:
        return set(opened.keys())


@pytest.mark.parametrize("tied", [False, True])
def test_merged_folder_computes_the_same(tiny_cfg, tmp_path, tied):
    cfg = make_bases(tiny_cfg, tmp_path / "bases", tied)
    model, weights = trained_model(cfg, tmp_path)
    before = model_outputs(cfg, model)
    resumed = build_model(cfg)
    RoseCheckpointer(resumed).load(weights)
    assert resumed.backbone.is_tied == tied
    assert max(deviations(before, model_outputs(cfg, resumed)).values()) == 0
    folder = tmp_path / "exported"
    export_merged(cfg, model, weights, folder)
    # In its own config, and as the start of another training with fresh adapters.
    for opts in ([], ["MODEL.LORA.ENABLED", "True"]):
        cfg_after, loaded = load(folder / "config.yaml", folder, *opts)
        assert max(deviations(before, model_outputs(cfg_after, loaded)).values()) < 1e-5
        assert loaded.backbone.is_tied == tied
        assert any("lora_" in name for name in loaded.state_dict()) == bool(opts)
    ends = ("embed_tokens.weight", "lm_head.weight")
    lmm_names = names_in(folder / "lmm" / "model.safetensors")
    assert sum(name.endswith(ends) for name in lmm_names) == (1 if tied else 2)
    assert not any("lora" in name or "base_layer" in name for name in lmm_names)
    own = names_in(folder / "model.safetensors")
    kinds = {name.split(".")[0] for name in own}
    assert kinds == {"backbone", "patch_analyzer", "mask_head"}
    # Of the patch embedding weight and bias, and the patch positions.
    assert sum(name.startswith("backbone.") for name in own) == 3
    assert not any("image_encoder" in name for name in own)


def test_the_comparison_sees_a_forgotten_adapter_and_a_forgotten_mask_channel(tiny_cfg, tmp_path):
    cfg = make_bases(tiny_cfg, tmp_path / "bases")
    model, _ = trained_model(cfg, tmp_path)
    before = model_outputs(cfg, model)
    assert max(deviations(before, model_outputs(cfg, model)).values()) == 0
    layer = model.backbone.model.model.language_model.layers[0].self_attn.v_proj
    weight = layer.lora_B["default"].weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        assert deviations(before, model_outputs(cfg, model))["patch_features"] > 1e-3
        weight.copy_(kept)
        model.backbone.vision_tower.embeddings.patch_embedding.weight[:, 3] = 0
    assert deviations(before, model_outputs(cfg, model))["patch_features"] > 1e-3


def test_bases_are_what_a_pretrained_model_brings(tiny_cfg, tmp_path, caplog):
    torch.manual_seed(0)
    original = build_model(tiny_cfg).eval()
    before = model_outputs(tiny_cfg, original)
    cfg = make_bases(tiny_cfg, tmp_path / "bases")
    assert "patch positions (MODEL.LMM.PATCH_POSITIONS) are not among the bases" in caplog.text
    model = build_model(cfg).eval()
    assert model.base_revisions() == {
        "backbone.model": f"{tmp_path / 'bases' / 'lmm'}@local",
        "mask_head": "sam.pth",
    }
    found = deviations(before, model_outputs(cfg, model))
    assert found["patch_features"] < 1e-6 and found["sam_features"] < 1e-6  # heads are new
    files = sorted(path.name for path in (tmp_path / "bases").iterdir())
    assert files == ["lmm", "sam.pth"]


def test_trainable_folder_has_what_was_trained_and_no_base(tiny_cfg, tmp_path):
    cfg = make_bases(tiny_cfg, tmp_path / "bases")
    model, weights = trained_model(cfg, tmp_path)
    folder = tmp_path / "small"
    export_trainable(cfg, weights, folder)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    buffers = {"mask_head.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"}
    assert names_in(folder / "model.safetensors") == trained | buffers
    cfg_after, loaded = load(folder / "config.yaml", folder)
    found = deviations(model_outputs(cfg, model), model_outputs(cfg_after, loaded))
    assert max(found.values()) == 0
    half = tmp_path / "half"
    export_trainable(cfg, weights, half, "bfloat16")
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, half)]
    assert sizes[1] < 0.6 * sizes[0]
    card = (folder / "README.md").read_text()
    assert "bases/lmm (local)" in card and str(tmp_path) not in card


@pytest.mark.parametrize(("kind", "off"), [("int8", 0.03), ("nf4", 0.3)])
def test_answers_of_quantised_models_stay_near(tiny_cfg, tmp_path, kind, off):
    """Of a checkpoint with adapters on its bases, and of an exported model."""
    pytest.importorskip("bitsandbytes", reason="the extra quantize is not installed")
    cfg = make_bases(tiny_cfg, tmp_path / "bases")
    model, weights = trained_model(cfg, tmp_path)
    before = model_outputs(cfg, model)
    small = cfg.clone()
    small.MODEL.LMM.QUANTIZE = kind
    adapted = build_model(small).eval()
    RoseCheckpointer(adapted).load(weights)
    assert any("lora_" in name for name in adapted.state_dict())
    export_merged(cfg, model, weights, tmp_path / "exported")
    folder = tmp_path / "exported"
    _, merged = load(folder / "config.yaml", folder, "MODEL.LMM.QUANTIZE", kind)
    for quantised in (adapted, merged):
        found = deviations(before, model_outputs(cfg, quantised))
        assert 0 < found["patch_features"] < off and found["sam_features"] == 0
        assert not any(p.requires_grad for n, p in quantised.named_parameters() if "base_l" in n)
    with pytest.raises(ValueError, match="language model is quantised, .*MODEL.LMM.QUANTIZE none"):
        export_bases(merged, tmp_path / "again")


def test_folder_names_no_place_and_its_card_says_what_it_is(tiny_cfg, tmp_path, monkeypatch):
    cfg = make_bases(tiny_cfg, tmp_path / "bases")
    model, weights = trained_model(cfg, tmp_path)
    bases = {"backbone.model": "llava-hf/some-model@0123abc", "mask_head": "sam.pth"}
    monkeypatch.setattr(model, "base_revisions", lambda: bases)
    export_merged(cfg, model, weights, tmp_path / "exported", "float16")
    for name in ("README.md", "config.yaml"):
        assert str(tmp_path) not in (tmp_path / "exported" / name).read_text(), name
    card = (tmp_path / "exported" / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["base_model"] == ["llava-hf/some-model"]
    assert "MODEL.WEIGHTS exported" in card and "llava-hf/some-model@0123abc" in card
    assert "| lora " in card
    assert "- `mask_head`: `sam.pth`\n- config hash `" in card
    assert "- random numbers" not in card and "Nothing else is needed" in card


def test_a_card_without_bases_has_none_in_its_header():
    facts = CardFacts("mine", "trainable", {}, "ab", "cd", {"torch": "2"}, "| a | b |")
    card = model_card(facts)
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1])
    assert "- random numbers: no pretrained base\n- config hash `cd`" in card
    assert "The bases named above are needed too" in card


def test_config_takes_the_bases_beside_the_weights(tiny_cfg, tmp_path):
    cfg = make_bases(tiny_cfg, tmp_path / "bases")
    before = cfg.clone()
    for weights in ("", str(tmp_path), "https://example.org/model.safetensors"):
        cfg.MODEL.WEIGHTS = before.MODEL.WEIGHTS = weights
        use_exported_folder(cfg)
        assert cfg == before
    for weights in (tmp_path / "bases", tmp_path / "bases" / "model.safetensors"):
        cfg.MODEL.LMM.PRETRAINED, cfg.MODEL.LMM.TOKENIZER = "some/model", "tiny"
        cfg.MODEL.WEIGHTS = str(weights)
        use_exported_folder(cfg)
        lmm, sam = cfg.MODEL.LMM, cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT
        found = (lmm.PRETRAINED, lmm.TOKENIZER, sam)
        assert found == (str(tmp_path / "bases/lmm"), "", str(tmp_path / "bases/sam.pth"))


def test_the_language_model_of_an_export_stands_for_it(tiny_cfg, exported):
    for weights in (exported / "lmm", exported / "lmm" / "model.safetensors"):
        tiny_cfg.MODEL.WEIGHTS = str(weights)
        use_exported_folder(tiny_cfg)
        model = tiny_cfg.MODEL
        found = (model.WEIGHTS, model.LMM.PRETRAINED, model.MASK_HEAD.SAM_CHECKPOINT)
        assert found == (str(exported), str(exported / "lmm"), str(exported / "sam.pth"))


def test_a_language_model_alone_is_one_to_train_from(tiny_cfg, exported, tmp_path, caplog):
    alone = shutil.copytree(exported / "lmm", tmp_path / "elsewhere" / "lmm")
    tiny_cfg.MODEL.WEIGHTS, tiny_cfg.MODEL.LMM.TOKENIZER = str(alone), "tiny"
    use_exported_folder(tiny_cfg)
    found = (tiny_cfg.MODEL.WEIGHTS, tiny_cfg.MODEL.LMM.PRETRAINED, tiny_cfg.MODEL.LMM.TOKENIZER)
    assert found == ("", str(alone), "")
    assert "elsewhere/lmm is a language model alone: a training starts from it" in caplog.text
    assert build_model(tiny_cfg).base_revisions() == {"backbone.model": f"{alone}@local"}


def test_weights_on_other_bases_are_refused(tiny_cfg, tmp_path):
    cfg = make_bases(tiny_cfg, tmp_path / "bases")
    model, weights = trained_model(cfg, tmp_path)
    export_merged(cfg, model, weights, tmp_path / "exported")
    other = build_model(cfg)
    with pytest.raises(ValueError, match="backbone.model was made from .*bases/lmm: set MODEL"):
        RoseCheckpointer(other).load(str(tmp_path / "exported"))
    with pytest.raises(ValueError, match="backbone.model was made from nothing: set MODEL"):
        RoseCheckpointer(build_model(tiny_cfg)).load(str(tmp_path / "exported"))


def test_taken_folder_and_unknown_dtype_are_refused(tiny_model, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="taken exists already"):
        export_bases(tiny_model, tmp_path / "taken")
    with pytest.raises(ValueError, match="dtype is 'int8'; allowed are float32, bfloat16, float16"):
        export_bases(tiny_model, tmp_path / "new", "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
    tiny_model.mask_head = torch.nn.Identity()
    with pytest.raises(ValueError, match="with a Identity cannot be written"):
        export_bases(tiny_model, tmp_path / "new")
