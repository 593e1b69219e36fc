"""The whole model on a 6 x 6 grid."""

import dataclasses
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from safetensors.torch import load_file

from rose_d2.checkpoint.weights import keys_to_save
from rose_d2.config.defaults import add_rose_config
from rose_d2.modeling.backbone.llava_builders import build_llava
from rose_d2.modeling.mask_head import build_sam_tiny
from rose_d2.modeling.meta_arch.rose import RefinementPrompt, box_frames
from rose_d2.structures.category_names import CategoryNames

LOSSES = {
    "loss_text",
    "loss_objectness",
    "loss_mask_bce",
    "loss_mask_dice",
    "loss_category",
    "loss_siglip",
    "loss_ranking",
}
SIDE = 12
SHIPPED = Path("checkpoints/rose_tiny")


def no_instances(side=84):
    empty = Instances((side, side))
    empty.gt_masks = BitMasks(torch.zeros(0, side, side, dtype=torch.bool))
    empty.gt_classes = torch.zeros(0, dtype=torch.long)
    empty.gt_category_names = CategoryNames([])
    empty.gt_is_stuff = torch.zeros(0, dtype=torch.bool)
    return empty


def losses_of(model, inputs, seed=0):
    torch.manual_seed(seed)
    with EventStorage():
        return model.train()(inputs)


def test_training_returns_every_loss_and_gradient(tiny_model, make_input):
    inputs = [make_input(), make_input("panoptic"), make_input("referring")]
    losses = losses_of(tiny_model, inputs)
    assert set(losses) == LOSSES
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    missing = [n for n, p in tiny_model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_image_without_target_runs_every_module_with_loss_zero(tiny_model, make_input):
    losses = losses_of(tiny_model, [make_input(instances=no_instances(), response=None)])
    for name in ("loss_mask_bce", "loss_mask_dice", "loss_category", "loss_siglip", "loss_text"):
        assert losses[name] == 0, name
    assert losses["loss_objectness"] > 0
    sum(losses.values()).backward()
    missing = [n for n, p in tiny_model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_nameless_target_has_a_mask_loss_but_no_name_loss(tiny_model, make_input):
    item = make_input("referring", response=None)
    item["instances"].gt_category_names = CategoryNames(["", ""])
    losses = losses_of(tiny_model, [item])
    assert losses["loss_category"] == 0
    assert losses["loss_mask_bce"] > 0


def test_two_micro_batches_average_to_one_batch(tiny_cfg, make_input):
    """No sampling: all pairs and negatives fit, so the losses are deterministic."""
    tiny_cfg.MODEL.ROSE.MAX_PAIRS = 99
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    first = make_input(response="There are 1 dog.")
    second = make_input(instruction="Segment all things.", instances=no_instances(), response=None)
    both = losses_of(model, [first, second])
    parts = [losses_of(model, [item]) for item in (first, second)]
    for name, value in both.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(value, mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", ["instance", "semantic", "panoptic", "referring"])
def test_batch_of_two_equals_two_of_one(tiny_model, make_input, task):
    tiny_model.eval()
    tiny_model.inference.settings = _keep_all(tiny_model.inference.settings)
    inputs = [
        make_input(task, dataset_name=None),
        make_input(task, "Please segment the red car.", dataset_name=None, height=50, width=70),
    ]
    with torch.no_grad():
        together = tiny_model(inputs)
        alone = [tiny_model([item])[0] for item in inputs]
    for one, two in zip(alone, together, strict=True):
        first, second = one["instances"], two["instances"]
        assert len(first) > 0
        assert first.pred_patches.tolist() == second.pred_patches.tolist()
        assert list(first.pred_category_names) == list(second.pred_category_names)
        torch.testing.assert_close(first.scores, second.scores, atol=1e-5, rtol=1e-4)
        assert (first.pred_masks == second.pred_masks).float().mean() > 0.999


def _keep_all(settings):
    return dataclasses.replace(settings, score_thresh=0.0, panoptic_score_thresh=0.0)


def test_outputs_follow_the_task_and_the_original_size(tiny_model, make_input):
    tiny_model.eval()
    tiny_model.inference.settings = _keep_all(tiny_model.inference.settings)
    with torch.no_grad():
        panoptic, referring = tiny_model([make_input("panoptic"), make_input("referring")])
    assert panoptic["open_instances"].pred_masks.shape[1:] == (96, 128)
    seg, segments = panoptic["panoptic_seg"]
    assert seg.shape == (96, 128)
    assert {info["id"] for info in segments} == set(seg.unique().tolist()) - {0}
    assert referring["ref_seg"].shape == (96, 128)
    assert 0 <= referring["ref_patch"] < 36
    assert len(referring["open_instances"]) == 1
    scores = panoptic["open_instances"].scores
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_unknown_names_have_no_class_and_candidates_constrain_names(tiny_model, make_input):
    tiny_model.eval()
    tiny_model.inference.settings = _keep_all(tiny_model.inference.settings)
    with torch.no_grad():
        (free,) = tiny_model([make_input("instance")])
        (chosen,) = tiny_model([make_input("instance", candidates=["dog", "tree"])])
    assert set(free["open_instances"].pred_classes.tolist()) == {-1}
    assert len(free["instances"]) == 0 < len(chosen["instances"])
    assert set(chosen["instances"].pred_category_names) <= {"dog", "tree"}
    for name, number in zip(
        chosen["instances"].pred_category_names, chosen["instances"].pred_classes, strict=True
    ):
        assert {"dog": 0, "tree": 2}[name] == int(number)


def test_prior_mask_is_a_fourth_channel_of_zeros_when_absent(tiny_model, make_input):
    tiny_model.eval()
    convolution = tiny_model.backbone.vision_tower.embeddings.patch_embedding
    prior = torch.zeros(1, 84, 84)
    prior[:, 20:60, 20:60] = 1
    task = {"task": "referring", "dataset_name": None}
    with torch.no_grad():
        absent, zero, given = (
            tiny_model([make_input(**task, **extra)])[0]["ref_score"]
            for extra in ({}, {"prior_mask": torch.zeros(1, 84, 84)}, {"prior_mask": prior})
        )
        convolution.weight[:, 3] = 0.05
        trained = tiny_model([make_input(**task, prior_mask=prior)])[0]["ref_score"]
    assert absent == zero == given
    assert trained != absent


def test_a_box_without_a_mask_is_marked_where_the_config_says_so(tiny_cfg, make_input):
    box, prior = {"named_box": (0, 250, 500, 999)}, torch.zeros(1, 84, 84)
    prior[:, :9] = 1
    marked = torch.zeros(1, 84, 84)
    marked[:, 21:, :43] = 1  # pixels that the box touches: 84 * 500 / 999 is 42.04
    tiny_cfg.MODEL.REFINEMENT.BOX_AS_MASK = True
    region = build_model(tiny_cfg).refinement_prompt.region
    assert torch.equal(region(make_input(**box)), marked)
    assert torch.equal(region(make_input(**box, prior_mask=torch.zeros(1, 84, 84))), marked)
    assert torch.equal(region(make_input(**box, prior_mask=prior)), prior)
    assert not region(make_input()).any()
    assert not RefinementPrompt().region(make_input(**box)).any()


def test_response_is_written_on_request(tiny_cfg, make_input):
    tiny_cfg.TEST.GENERATE_RESPONSE = True
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    with torch.no_grad():
        (output,) = model([make_input("instance")])
    assert isinstance(output["text"], str)


def test_parts_train_or_freeze_by_flag(tiny_cfg):
    for part in tiny_cfg.MODEL.TRAINABLE:
        tiny_cfg.MODEL.TRAINABLE[part] = False
    tiny_cfg.MODEL.TRAINABLE.HEADS = True
    tiny_cfg.MODEL.LORA.ENABLED = True
    model = build_model(tiny_cfg)
    assert set(model.trainable_parts()) == {"heads", "lora"}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("patch_analyzer" in name or "lora_" in name for name in trained)


def test_the_halves_add_nothing_to_the_state_dict():
    """They hold modules of the model; the shipped checkpoint has each tensor once."""
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.merge_from_file(str(SHIPPED / "config.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    weights = load_file(SHIPPED / "model.safetensors")
    assert set(weights) == set(model.state_dict())
    model.load_state_dict(weights, strict=True)
    for half in (model.supervisor, model.inference):
        assert half.patch_analyzer is model.patch_analyzer
        assert half.mask_head is model.mask_head
        assert half.category_decoder.lmm is model.backbone


def test_pretrained_bases_are_named_so_that_checkpoints_leave_them_out(tiny_cfg, tmp_path):
    random = build_model(tiny_cfg)
    assert random.base_revisions() == {}
    lmm = build_llava(tiny_cfg, random.backbone.tokenizer)
    lmm.save_pretrained(tmp_path / "lmm")
    torch.save(build_sam_tiny(64).state_dict(), tmp_path / "sam.pth")
    tiny_cfg.MODEL.LMM.PRETRAINED = str(tmp_path / "lmm")
    tiny_cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT = str(tmp_path / "sam.pth")
    tiny_cfg.MODEL.TRAINABLE.LANGUAGE_MODEL = False
    model = build_model(tiny_cfg)
    assert model.base_revisions() == {
        "backbone.model": f"{tmp_path / 'lmm'}@local",
        "mask_head": "sam.pth",
    }
    saved = keys_to_save(model)
    assert not any("language_model.layers" in key for key in saved)
    assert any("patch_embedding" in key for key in saved)


@pytest.fixture
def images():
    return torch.full((2, 3, SIDE, SIDE), 100, dtype=torch.uint8)


@pytest.fixture
def priors():
    """A mask of rows 4 to 6, columns 3 to 7 with a hole, and an image without a prior."""
    masks = torch.zeros(2, 1, SIDE, SIDE)
    masks[0, 0, 4:7, 3:8] = 1
    masks[0, 0, 5, 5] = 0
    return masks


def test_concat_leaves_pixels_alone_and_passes_the_mask(images, priors):
    pixels, channel = RefinementPrompt("concat")(images, priors)
    assert pixels is images
    assert channel is priors


def test_overlay_blends_exactly_where_the_mask_is(images, priors):
    prompt = RefinementPrompt("mask_overlay", colour=(200, 20, 0), alpha=0.25)
    pixels, channel = prompt(images, priors)
    covered = priors[0, 0] > 0
    for plane, value in zip(pixels[0], (0.75 * 100 + 50, 0.75 * 100 + 5, 0.75 * 100), strict=True):
        assert (plane[covered] == value).all()
        assert (plane[~covered] == 100).all()
    assert (pixels[1] == 100).all()
    assert channel.shape == priors.shape
    assert not channel.any()


def test_box_overlay_adds_a_frame_of_the_given_width_around_the_mask(images, priors):
    prompt = RefinementPrompt("mask_box_overlay", colour=(255, 0, 0), alpha=0.5, line_width=2)
    pixels, channel = prompt(images, priors)
    line = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    line[2:9, 1:10] = True
    line[4:7, 3:8] = False
    red, green, _ = pixels[0]
    assert (red[line] == 255).all() and (green[line] == 0).all()
    covered = priors[0, 0] > 0
    assert (red[covered] == 177.5).all() and (green[covered] == 50).all()
    assert (pixels[0][:, ~line & ~covered] == 100).all()
    assert (pixels[1] == 100).all()
    assert not channel.any()


def test_frame_at_the_border_moves_inwards_and_keeps_its_width():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 0:4, 5:8] = True
    (frame,) = box_frames(mask, 1)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[0:5, 4:8] = True
    expected[1:4, 5:7] = False
    assert torch.equal(frame, expected)


def test_unknown_form_is_refused_when_the_model_is_built(tiny_cfg):
    tiny_cfg.MODEL.REFINEMENT.PROMPT = "outline"
    with pytest.raises(ValueError, match="'outline'; choose one of concat, mask_overlay"):
        build_model(tiny_cfg)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_draws_in_training_and_inference_alike(tiny_model, make_input, training):
    """What reaches the backbone is the drawn image and an empty fourth channel."""
    seen = []
    tiny_model.backbone.register_forward_hook(lambda module, args, output: seen.append(args[:2]))
    prior = torch.zeros(1, 84, 84)
    prior[:, 20:60, 20:60] = 1
    item = make_input("refinement", prior_mask=prior)
    tiny_model.train(training)
    for form in ("concat", "mask_overlay"):
        tiny_model.refinement_prompt = RefinementPrompt(form)
        with torch.no_grad():
            tiny_model.perceive([item])
    (plain, passed), (drawn, empty) = seen
    assert torch.equal(plain[0], item["image"]) and torch.equal(passed[0], prior)
    assert not empty.any()
    changed = (drawn[0] != item["image"]).any(dim=0)
    assert torch.equal(changed, prior[0].bool())


@pytest.mark.parametrize("task", ["refinement", "region"])
def test_tasks_about_one_region_are_answered_with_one_mask(tiny_model, make_input, task):
    tiny_model.eval()
    with torch.no_grad():
        (output,) = tiny_model([make_input(task)])
    assert output["ref_seg"].shape == (96, 128)
    assert len(output["open_instances"]) == 1
    assert torch.equal(output["ref_seg"], output["open_instances"].pred_masks[0])


def test_an_answer_box_bounds_where_the_answering_patch_lies(tiny_model, make_input):
    """84 pixels have 6 x 6 patches; each box is within one of them."""
    tiny_model.eval()
    boxes = {0: (20, 20, 90, 90), 35: (900, 900, 990, 990), 8: (400, 200, 450, 260)}
    with torch.no_grad():
        outputs = tiny_model([make_input("refinement", answer_box=box) for box in boxes.values()])
        (free,) = tiny_model([make_input("refinement", answer_box=(0, 0, 999, 999))])
        (plain,) = tiny_model([make_input("refinement")])
    assert [output["ref_patch"] for output in outputs] == list(boxes)
    assert free["ref_patch"] == plain["ref_patch"]
