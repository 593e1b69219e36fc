"""The LMM: who sees whom, what trains, and agreement with Hugging Face's own forward."""

import contextlib

import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone
from mini_7b import TOWER_SIZE, write_llava
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AttentionInterface,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)

from rose_d2.config.read import read_config
from rose_d2.modeling.backbone.llava_builders import ATTENTIONS, build_llava
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
    masks = prefix_attention_mask(PROMPT, LENGTH, 5)
    assert masks.shape == (2, 1, 5, 5)
    assert drawn(masks[0]) == ["xxx..", "xxx..", "xxx..", "xxxx.", "xxxxx"]
    # Two tokens of padding attend to themselves only.
    assert drawn(masks[1]) == ["xx...", "xx...", "xxx..", "...x.", "....x"]


WORDS = {
    "responses and padding": [("Segment.", "A dog."), ("Segment every single thing.", "None.")],
    "no response": [("Segment the dog.", None), ("Segment the cat.", None)],
    "padding": [("Segment.", None), ("Segment every single thing in this image.", None)],
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("prompt_attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_gives_the_same_forward(tiny_cfg, attention, prompt_attention, words):
    """Against attention written out: softmax over what the drawn mask allows."""
    if attention == "flash_attention_2" and not torch.cuda.is_available():
        pytest.skip("needs a GPU and flash-attn")
    tiny_cfg.MODEL.LMM.TEXT_CONFIG.num_key_value_heads = 1  # queries share keys, as in 7B
    backbone = build(tiny_cfg, ATTENTION=attention, PROMPT_ATTENTION=prompt_attention)
    prompts = [encode(backbone, *pair) for pair in words]
    found = run(backbone, prompts)
    with written_out_attention(backbone, prompt_attention == "bidirectional", prompts):
        expected = run(backbone, prompts)
    for name in ("patch_features", "response_logits"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-4
        )


@contextlib.contextmanager
def written_out_attention(backbone, bidirectional, prompts):
    """Replaces the language model's attention by a sum over all allowed positions."""
    patches = backbone.grid.num_patches
    lengths = [len(p.before + p.after) + patches for p in prompts]
    whole = [n + len(p.response) for n, p in zip(lengths, prompts, strict=True)]
    mask = torch.zeros(len(prompts), max(whole), max(whole), dtype=torch.bool)
    for allowed, prompt, end in zip(mask, lengths, whole, strict=True):
        for row in range(max(whole)):
            stop = prompt if bidirectional and row < prompt else row + 1
            allowed[row, :stop] = row < end
            allowed[row, row] = True

    def attend(module, query, key, value, attention_mask, scaling, **others):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~mask[:, None], -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    config = backbone.model.config.text_config
    before = config._attn_implementation
    AttentionInterface.register("written_out", attend)
    config._attn_implementation = "written_out"
    try:
        yield
    finally:
        config._attn_implementation = before


@pytest.mark.parametrize(
    ("name", "prompt_attention", "is_masked"),
    [
        ("responses and padding", "bidirectional", True),
        ("no response", "bidirectional", False),
        ("padding", "bidirectional", True),
        ("responses and padding", "causal", False),
    ],
)
def test_a_mask_is_made_where_one_is_needed_only(
    tiny_cfg, name, prompt_attention, is_masked, monkeypatch
):
    backbone = build(tiny_cfg, PROMPT_ATTENTION=prompt_attention)
    seen = set()

    def attend(*args, attn_mask=None, is_causal=False, **options):
        seen.add((attn_mask is not None, is_causal))
        return attention(*args, attn_mask=attn_mask, is_causal=is_causal, **options)

    attention = torch.nn.functional.scaled_dot_product_attention
    image, prior = torch.rand(1, 3, SIDE, SIDE), torch.zeros(1, 1, SIDE, SIDE)
    with torch.no_grad():
        patches = backbone.encode_image(image, prior).expand(2, -1, -1)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
        backbone(image, prior, [encode(backbone, *pair) for pair in WORDS[name]], patches)
    assert seen == {(is_masked, prompt_attention == "causal")}


def test_a_view_is_hugging_faces_own_at_the_towers_size(tmp_path):
    """Image processor, tower, projector, end of the view and text, all as transformers has them."""
    write_llava(tmp_path)
    opts = ["MODEL.LMM.PRETRAINED", str(tmp_path), "MODEL.LMM.IMAGE_SIZE", str(TOWER_SIZE)]
    opts += ["MODEL.LMM.PROMPT_ATTENTION", "causal", "MODEL.LMM.DTYPE", "float32"]
    cfg = read_config("configs/rose_7b.yaml", [*opts, "MODEL.LORA.ENABLED", "False"])
    backbone = build_backbone(cfg).eval()
    prompt = encode(backbone, "Segment the dog.", "There are 1 dog.")
    noise = np.random.default_rng(0).integers(0, 256, (TOWER_SIZE, TOWER_SIZE, 3), dtype=np.uint8)
    view = torch.from_numpy(noise).permute(2, 0, 1)[None]
    processor = LlavaOnevisionProcessor.from_pretrained(tmp_path)
    # Of two images transformers takes one view each; the first one's vectors are compared.
    both = processor.image_processor([[Image.fromarray(noise)] * 2], return_tensors="pt")
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    words = (*prompt.before, *[model.config.image_token_id] * 17, *prompt.after, *prompt.response)
    with torch.no_grad():
        ours = backbone(view, torch.zeros(1, 1, TOWER_SIZE, TOWER_SIZE), [prompt])
        features = model.model.get_image_features(**both).pooler_output[0]
        assert features.shape == (4 * 4 + 1, 32)
        ids = torch.tensor([words])
        embeddings = model.get_input_embeddings()(ids)
        is_image = (ids == model.config.image_token_id)[..., None].expand_as(embeddings)
        logits = model(inputs_embeds=embeddings.masked_scatter(is_image, features)).logits[0]
    expected = logits[-len(prompt.response) - 1 : -1]
    torch.testing.assert_close(ours.response_logits, expected, atol=1e-5, rtol=1e-4)
    backbone.image_newline = False
    with torch.no_grad():
        without = backbone(view, torch.zeros(1, 1, TOWER_SIZE, TOWER_SIZE), [prompt])
    assert not torch.allclose(without.response_logits, expected, atol=1e-3)
