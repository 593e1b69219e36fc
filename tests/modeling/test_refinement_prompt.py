import pytest
import torch
from detectron2.modeling import build_model

from rose_d2.modeling.meta_arch.rose import RefinementPrompt, box_frames

SIDE = 12


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
    assert len(output["instances"]) == 1
    assert torch.equal(output["ref_seg"], output["instances"].pred_masks[0])


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
