"""The LMM: who sees whom, what trains, and agreement with Hugging Face's own forward."""

import pytest
import torch
from detectron2.modeling import build_backbone
from safetensors.torch import load_file, save_file

from rose_d2.modeling.backbone.llava_builders import build_llava
from rose_d2.modeling.backbone.llava_onevision import LlavaOneVisionBackbone, prefix_attention_mask
from rose_d2.prompts.conversation import Conversation, encode_image_prompt

SIDE = 84
PROMPT, LENGTH = torch.tensor([3, 2]), torch.tensor([5, 3])


def build(cfg, **lmm):
    for key, value in lmm.items():
        setattr(cfg.MODEL.LMM, key, value)
    torch.manual_seed(0)
    return build_backbone(cfg).eval()


def encode(backbone, instruction="Segment the dog.", response=None, image_first=True):
    return encode_image_prompt(backbone.tokenizer, Conversation(instruction, response), image_first)


def run(backbone, prompts, images=None, priors=None):
    torch.manual_seed(1)
    if images is None:
        images = torch.rand(1, 3, SIDE, SIDE).expand(len(prompts), -1, -1, -1) * 255
    if priors is None:
        priors = torch.zeros(len(prompts), 1, SIDE, SIDE)
    with torch.no_grad():
        return backbone(images, priors, prompts)


def differs(backbone, first, second, image_first=True):
    """Largest difference of the patch states under two (instruction, response) pairs."""
    states = [
        run(backbone, [encode(backbone, *words, image_first)]).patch_features
        for words in (first, second)
    ]
    return float((states[0] - states[1]).abs().max())


@pytest.mark.parametrize(
    ("attention", "image_first", "is_seen"),
    [("bidirectional", True, True), ("causal", True, False), ("causal", False, True)],
)
def test_whether_patches_see_the_instruction(tiny_cfg, attention, image_first, is_seen):
    backbone = build(tiny_cfg, PROMPT_ATTENTION=attention)
    change = differs(
        backbone, ("Segment the dog.", None), ("Segment the cat.", None), image_first=image_first
    )
    assert (change > 1e-4) == is_seen


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_patches_never_see_the_response(tiny_cfg, attention):
    backbone = build(tiny_cfg, PROMPT_ATTENTION=attention)
    change = differs(backbone, ("Segment.", "There are 2 dog."), ("Segment.", "None at all."))
    assert change < 1e-6


def test_padding_changes_nothing(tiny_cfg):
    backbone = build(tiny_cfg)
    short = encode(backbone, "Segment.", "A dog.")
    long = encode(backbone, "Segment every single thing in this image.", "There are 1 dog, 2 cat.")
    alone, both = run(backbone, [short]), run(backbone, [short, long])
    torch.testing.assert_close(both.patch_features[:1], alone.patch_features, atol=1e-5, rtol=1e-4)
    ours = both.response_images == 0
    torch.testing.assert_close(
        both.response_logits[ours], alone.response_logits, atol=1e-5, rtol=1e-4
    )
    assert both.response_labels[ours].tolist() == list(short.response)


def test_causal_logits_equal_hugging_face(tiny_cfg):
    """With causal attention the joined embeddings give transformers' own logits."""
    backbone = build(tiny_cfg, PROMPT_ATTENTION="causal")
    prompt = encode(backbone, "Segment.", "There are 1 dog.")
    images, prior = torch.rand(1, 3, SIDE, SIDE) * 255, torch.zeros(1, 1, SIDE, SIDE)
    with torch.no_grad():
        ours = backbone(images, prior, [prompt])
        patches = backbone.encode_image(images, prior)
        ids = torch.tensor([prompt.before + prompt.after + prompt.response])
        words = backbone.model.get_input_embeddings()(ids)
        cut = len(prompt.before)
        embeddings = torch.cat([words[:, :cut], patches, words[:, cut:]], dim=1)
        logits = backbone.model(inputs_embeds=embeddings).logits[0]
    expected = logits[-len(prompt.response) - 1 : -1]
    torch.testing.assert_close(ours.response_logits, expected, atol=1e-5, rtol=1e-4)


def test_official_folder_loads_with_the_same_outputs(tiny_cfg, tmp_path):
    backbone = build(tiny_cfg)
    torch.manual_seed(3)
    official = build_llava(tiny_cfg, backbone.tokenizer)
    official.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    loaded = build(tiny_cfg, PRETRAINED=str(tmp_path), TOKENIZER="", PATCH_POSITIONS=False)
    images = torch.rand(1, 3, SIDE, SIDE) * 255
    pixels = images / 127.5 - 1
    with torch.no_grad():
        hidden = official.model.vision_tower(
            pixels, interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states[-1]
        expected = official.model.multi_modal_projector(hidden)
        for mask in (torch.zeros(1, 1, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE)):
            found = loaded.encode_image(images, mask)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_partial_weights_are_refused(tiny_cfg, tmp_path):
    build_llava(tiny_cfg, build(tiny_cfg).tokenizer).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["language_model.model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="not a whole LLaVA-OneVision.*norm.weight"):
        build(tiny_cfg, PRETRAINED=str(tmp_path))


def test_patch_embedding_gets_gradient_through_a_frozen_tower(tiny_cfg):
    backbone = build(tiny_cfg)
    backbone.requires_grad_(False)
    for _, parameter in backbone.parts()["patch_embed"]:
        parameter.requires_grad_(True)
    images, prior = torch.rand(1, 3, SIDE, SIDE) * 255, torch.ones(1, 1, SIDE, SIDE)
    backbone(images, prior, [encode(backbone)]).patch_features.sum().backward()
    weight = backbone.vision_tower.embeddings.patch_embedding.weight
    assert weight.grad.abs().sum() > 0
    assert weight.grad[:, 3].abs().sum() > 0


def test_lora_touches_the_language_model_only(tiny_cfg):
    tiny_cfg.MODEL.LORA.ENABLED = True
    backbone = build(tiny_cfg)
    adapted = {n for n, _ in backbone.named_parameters() if "lora_" in n}
    assert len(adapted) == 2 * 7 * 2  # layers x linear layers x (A, B)
    assert all("language_model.layers" in name for name in adapted)
    assert len(backbone.parts()["lora"]) == len(adapted)


def test_parts_cover_every_used_parameter_once(tiny_cfg):
    backbone = build(tiny_cfg)
    named = [id(p) for part in backbone.parts().values() for _, p in part]
    assert len(named) == len(set(named))
    rest = [n for n, p in backbone.named_parameters() if id(p) not in named]
    assert all("post_layernorm" in name or "image_newline" in name for name in rest)


def test_tied_output_layer_belongs_to_one_part(tiny_cfg):
    tiny_cfg.MODEL.LMM.TEXT_CONFIG.tie_word_embeddings = True
    backbone = build(tiny_cfg)
    assert backbone.is_tied
    assert backbone.parts()["lm_head"] == []
    assert len(backbone.parts()["embed_tokens"]) == 1


def test_gradient_checkpointing_gives_the_same_gradient(tiny_cfg):
    gradients = []
    for enabled in (False, True):
        backbone = build(tiny_cfg, GRADIENT_CHECKPOINTING=enabled).train()
        torch.manual_seed(2)
        images, prior = torch.rand(1, 3, SIDE, SIDE) * 255, torch.zeros(1, 1, SIDE, SIDE)
        backbone(images, prior, [encode(backbone)]).patch_features.square().sum().backward()
        gradients.append(backbone.vision_tower.embeddings.patch_embedding.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_bad_settings_are_refused(tiny_cfg):
    with pytest.raises(ValueError, match="bidirectional and causal"):
        build(tiny_cfg, PROMPT_ATTENTION="both")
    tiny_cfg.MODEL.LMM.PROMPT_ATTENTION = "causal"
    tiny_cfg.MODEL.LMM.TEXT_CONFIG.vocab_size = 10
    with pytest.raises(ValueError, match="embeds 10"):
        build(tiny_cfg)


def test_is_a_detectron2_backbone(tiny_cfg):
    backbone = build(tiny_cfg)
    assert isinstance(backbone, LlavaOneVisionBackbone)
    shape = backbone.output_shape()["patch_features"]
    assert (shape.channels, shape.height, shape.width, shape.stride) == (32, 6, 6, 14)


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
