"""A training step computes only what the losses need, and keeps only what gradients need."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rose_d2.prompts.conversation import Conversation, encode_image_prompt, encode_name

TRAINED = ("PATCH_EMBED", "EMBED_TOKENS", "LM_HEAD", "HEADS", "SAM_MASK_DECODER")


@pytest.fixture
def recipe_model(tiny_cfg):
    """The tiny model as the 7B recipe trains it, with gradient checkpointing."""
    for part in tiny_cfg.MODEL.TRAINABLE:
        tiny_cfg.MODEL.TRAINABLE[part] = part in TRAINED
    tiny_cfg.MODEL.LORA.ENABLED = True
    tiny_cfg.MODEL.LMM.GRADIENT_CHECKPOINTING = True
    tiny_cfg.MODEL.ROSE.MAX_PAIRS = 3
    torch.manual_seed(0)
    return build_model(tiny_cfg).train()


def calls_of(module, shape_of=None):
    """Record the shape of every input a module gets."""
    shapes = []

    def record(_, args, kwargs):
        shapes.append(tuple((shape_of or (lambda a, k: a[0]))(args, kwargs).shape))

    module.register_forward_pre_hook(record, with_kwargs=True)
    return shapes


def losses_of(model, inputs):
    with EventStorage():
        return model(inputs)


def test_logits_are_computed_where_a_label_is_and_nowhere_else(recipe_model, make_input):
    shapes = calls_of(recipe_model.backbone.model.lm_head)
    inputs = [make_input(response="There are 1 dog."), make_input(response=None)]
    losses_of(recipe_model, inputs)
    tokenizer = recipe_model.backbone.tokenizer
    response, names = shapes
    # The response's own tokens; an instruction of any length and the patches add nothing.
    said = encode_image_prompt(tokenizer, Conversation("Segment.", "There are 1 dog."), True)
    assert response == (len(said.response), 32)
    longer = [make_input(instruction="Segment. " * 30, response="There are 1 dog."), inputs[1]]
    losses_of(recipe_model, longer)
    assert shapes[2] == response
    # Three pairs of each image at most, each with its own letters, period and end.
    spelled = {name: len(encode_name(tokenizer, name)) for name in ("dog", "red car")}
    lengths = {a * spelled["dog"] + (6 - a) * spelled["red car"] for a in range(7)}
    assert names[0] in lengths


def test_masks_are_decoded_for_matched_patches_only(recipe_model, make_input):
    shapes = calls_of(
        recipe_model.mask_head.mask_decoder, lambda _, kwargs: kwargs["sparse_prompt_embeddings"]
    )
    losses_of(recipe_model, [make_input(), make_input()])
    assert shapes == [(3, 1, 64), (3, 1, 64)]  # MAX_PAIRS an image, not 36 patches


def test_layers_are_recomputed_in_the_backward_pass(recipe_model, make_input):
    vision = calls_of(recipe_model.backbone.vision_tower.encoder.layers[0].mlp)
    language = calls_of(recipe_model.backbone.model.model.language_model.layers[0].mlp)
    losses = losses_of(recipe_model, [make_input()])
    forward = len(vision), len(language)
    assert forward == (1, 2)  # the image's prompt, and the names
    sum(losses.values()).backward()
    assert (len(vision), len(language)) == (2, 4)


def test_frozen_encoder_of_sam_keeps_nothing_for_the_backward_pass(recipe_model, make_input):
    features = recipe_model.mask_head.encode([make_input()["sam_image"]])
    assert not features.requires_grad and features.grad_fn is None


def test_exactly_the_trained_parameters_get_a_gradient(recipe_model, make_input):
    prior = torch.zeros(1, 84, 84)
    prior[:, 20:60, 20:60] = 1
    losses = losses_of(recipe_model, [make_input(prior_mask=prior), make_input()])
    sum(losses.values()).backward()
    with_gradient = {n for n, p in recipe_model.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, p in recipe_model.named_parameters() if p.requires_grad}
    # Through a frozen SigLIP to its first layer, the mask's channel included.
    weight = recipe_model.backbone.vision_tower.embeddings.patch_embedding.weight
    assert weight.grad[:, :3].abs().max() > 0 and weight.grad[:, 3].abs().max() > 0
