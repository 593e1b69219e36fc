"""The mask head against segment-anything itself."""

import pytest
import torch
from detectron2.config import get_cfg
from segment_anything.modeling import Sam

from rose_d2.config.defaults import add_rose_config
from rose_d2.modeling.mask_head import (
    MaskView,
    SAMMaskHead,
    build_mask_head,
    build_sam,
    build_sam_tiny,
)
from rose_d2.structures.patches import PatchPredictions

SIDE = 64


MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.fixture
def sam():
    torch.manual_seed(0)
    return build_sam_tiny(SIDE).eval()


@pytest.fixture
def head(sam):
    return SAMMaskHead(sam=sam, pixel_mean=MEAN, pixel_std=STD).eval()


def candidates(mask_embeddings, centres=None):
    """Candidates of one image that differ in their mask embeddings only."""
    count = len(mask_embeddings)
    return PatchPredictions(
        patches=torch.arange(count),
        centres=torch.full((count, 2), 0.5) if centres is None else centres,
        objectness_logits=torch.zeros(count),
        mask_embeddings=mask_embeddings,
        category_embeddings=torch.zeros(count, 1),
        siglip_embeddings=torch.zeros(count, 1),
    )


def test_masks_equal_sams_own_decoder(sam: Sam, head):
    images = [torch.rand(3, 48, 64) * 255, torch.rand(3, 64, 40) * 255]
    prompts = [torch.randn(3, 64), torch.randn(2, 64)]
    with torch.no_grad():
        views = [MaskView((48, 64)), MaskView((64, 40))]
        found = head.decode(head.encode(images), [candidates(p) for p in prompts], views)
        for image, prompt, drawn in zip(images, prompts, found, strict=True):
            embedding = sam.image_encoder(sam.preprocess(image)[None])
            _, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
            expected, quality = sam.mask_decoder(
                image_embeddings=embedding,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=prompt[:, None],
                dense_prompt_embeddings=dense.expand(len(prompt), -1, -1, -1),
                multimask_output=False,
            )
            torch.testing.assert_close(drawn.logits, expected[:, 0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(drawn.quality, quality[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shown", ["mask", "box", "mask_box"])
def test_a_region_is_shown_by_sams_own_prompts(sam: Sam, shown):
    head = SAMMaskHead(sam=sam, pixel_mean=MEAN, pixel_std=STD, region_prompt=shown).eval()
    image, prompt = torch.rand(3, 48, 64) * 255, torch.randn(2, 64)
    prior = torch.zeros(1, 84, 84)
    prior[:, :, :42] = 1  # the left half of the view, 8 of 16 columns of SAM's logits
    view = MaskView((48, 64), prior, (0, 333, 666, 999))
    logits = torch.full((1, 1, 16, 16), -8.0)
    logits[:, :, :12, :8] = 8.0
    box = torch.tensor([[0.0, 16.0, 128 / 3, 48.0]])
    with torch.no_grad():
        embedding = sam.image_encoder(sam.preprocess(image)[None])
        (drawn,) = head.decode(embedding, [candidates(prompt)], [view])
        sparse, dense = sam.prompt_encoder(
            points=None,
            boxes=box if "box" in shown else None,
            masks=logits if "mask" in shown else None,
        )
        expected, _ = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=torch.cat([prompt[:, None], sparse.expand(2, -1, -1)], dim=1),
            dense_prompt_embeddings=dense.expand(2, -1, -1, -1),
            multimask_output=False,
        )
    torch.testing.assert_close(drawn.logits, expected[:, 0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prior", [None, torch.zeros(1, 84, 84)])
def test_where_no_region_is_spoken_of_sam_is_shown_none(sam: Sam, head, prior):
    shown = SAMMaskHead(sam=sam, pixel_mean=MEAN, pixel_std=STD, region_prompt="mask_box").eval()
    embedding, candidate = head.encode([torch.rand(3, 48, 64)]), candidates(torch.randn(2, 64))
    with torch.no_grad():
        (plain,) = head.decode(embedding, [candidate], [MaskView((48, 64))])
        (same,) = shown.decode(embedding, [candidate], [MaskView((48, 64), prior)])
    assert torch.equal(plain.logits, same.logits)


@pytest.mark.parametrize(
    "view", [MaskView((48, 64)), MaskView((48, 64), torch.ones(1, 84, 84), (0, 0, 500, 500))]
)
def test_every_trained_part_has_a_gradient_whatever_is_spoken_of(sam: Sam, view):
    head = SAMMaskHead(
        sam=sam, pixel_mean=MEAN, pixel_std=STD, region_prompt="mask_box", learns_quality=True
    )
    embedding = head.encode([torch.rand(3, 48, 64)])
    (drawn,) = head.decode(embedding, [candidates(torch.randn(1, 64))], [view])
    (drawn.logits.sum() + drawn.quality.sum() + drawn.prior_quality.sum()).backward()
    parts = head.parts()
    assert len(parts["sam_prompt_encoder"]) == 13
    without = [n for named in parts.values() for n, p in named if p.grad is None]
    assert not without


def test_an_unknown_region_prompt_is_refused(sam: Sam):
    with pytest.raises(ValueError, match="REGION_PROMPT is 'point'; choose one of none, mask"):
        SAMMaskHead(sam=sam, pixel_mean=MEAN, pixel_std=STD, region_prompt="point")


def test_position_prompt_is_sams_encoding_of_a_click_at_the_patch(sam: Sam):
    head = SAMMaskHead(sam=sam, pixel_mean=MEAN, pixel_std=STD, position_prompt=True).eval()
    image = torch.rand(3, 48, 64) * 255
    # A patch a quarter across and three quarters down a view of 48 x 64: pixel (16, 36).
    candidate = candidates(torch.zeros(1, 64), torch.tensor([[0.25, 0.75]]))
    with torch.no_grad():
        (found,) = head.decode(head.encode([image]), [candidate], [MaskView((48, 64))])
        # SAM moves a click to the middle of its pixel and adds a vector for its label.
        click = (torch.tensor([[[15.5, 35.5]]]), torch.ones(1, 1))
        sparse, dense = sam.prompt_encoder(points=click, boxes=None, masks=None)
        # SAM also adds a padding token, which our prompts do not have.
        assert sparse.shape == (1, 2, 64)
        click_only = (sparse - sam.prompt_encoder.point_embeddings[1].weight)[:, :1]
        expected, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(sam.preprocess(image)[None]),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=click_only,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
    torch.testing.assert_close(found.logits, expected[:, 0], atol=1e-5, rtol=1e-4)


def test_upscaling_equals_sams_postprocessing(sam, head):
    low_res = torch.randn(2, 16, 16)
    expected = sam.postprocess_masks(low_res[:, None], (48, 64), (96, 128))[:, 0]
    torch.testing.assert_close(head.upscale(low_res, (48, 64), (96, 128)).whole(), expected)


def test_no_prompts_give_no_masks(head):
    embeddings = head.encode([torch.zeros(3, 64, 64), torch.zeros(3, 64, 64)])
    empty, single = candidates(torch.zeros(0, 64)), candidates(torch.zeros(1, 64))
    none, one = head.decode(embeddings, [empty, single], [MaskView((64, 64))] * 2)
    assert none.logits.shape == (0, 16, 16) and none.quality.shape == (0,)
    assert one.logits.shape == (1, 16, 16) and one.quality.shape == (1,)
    assert head.upscale(none.logits, (64, 64), (10, 20)).shape == (0, 10, 20)


def test_targets_lie_in_the_padded_frame(head):
    masks = torch.zeros(1, 84, 84, dtype=torch.bool)
    masks[0, :, :42] = True  # the left half of the image
    targets, valid = head.targets(masks, (48, 64))  # 12 of 16 rows are image
    assert targets.shape == (1, 16, 16)
    assert valid.sum() == 12 * 16
    torch.testing.assert_close(targets[0, :12, :7], torch.ones(12, 7))
    torch.testing.assert_close(targets[0, :12, 9:], torch.zeros(12, 7))
    assert targets[0, 12:].sum() == 0


def test_perfect_logits_survive_the_way_back(head):
    """Targets and upscaling are inverse: a mask comes back where it was."""
    masks = torch.zeros(1, 84, 84, dtype=torch.bool)
    masks[0, 21:63, 28:70] = True
    targets, _ = head.targets(masks, (64, 64))
    logits = (targets.clamp(0.01, 0.99)).logit()
    back = head.upscale(logits, (64, 64), (84, 84)).tensor
    overlap = (back & masks).sum() / (back | masks).sum()
    assert overlap > 0.97


def test_too_large_a_view_is_refused(head):
    with pytest.raises(ValueError, match="resize its longest side to 64"):
        head.encode([torch.zeros(3, 65, 10)])


def build_cfg(**mask_head):
    cfg = get_cfg()
    add_rose_config(cfg)
    for key, value in mask_head.items():
        setattr(cfg.MODEL.MASK_HEAD, key, value)
    return cfg


def test_official_checkpoint_format_loads(sam, tmp_path):
    path = tmp_path / "sam.pth"
    torch.save(sam.state_dict(), path)
    cfg = build_cfg(SAM_ARCH="tiny", IMAGE_SIZE=SIDE, SAM_CHECKPOINT=str(path))
    loaded = build_sam(cfg)
    for name, value in sam.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


def test_bad_checkpoints_and_sizes_are_refused(sam, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build_sam(build_cfg(SAM_ARCH="tiny", SAM_CHECKPOINT=str(tmp_path / "none.pth")))
    partial = dict(list(sam.state_dict().items())[1:])
    torch.save(partial, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match="does not fit"):
        build_sam(
            build_cfg(
                SAM_ARCH="tiny", IMAGE_SIZE=SIDE, SAM_CHECKPOINT=str(tmp_path / "partial.pth")
            )
        )
    with pytest.raises(ValueError, match="takes 1024"):
        build_sam(build_cfg(SAM_ARCH="vit_b", IMAGE_SIZE=512))
    with pytest.raises(ValueError, match="vit_h, vit_l, vit_b, tiny"):
        build_sam(build_cfg(SAM_ARCH="vit_x"))


def test_images_are_normalised_as_the_config_says():
    numbers = {"PIXEL_MEAN": [1.0, 2.0, 3.0], "PIXEL_STD": [4.0, 5.0, 6.0]}
    head = SAMMaskHead(build_cfg(SAM_ARCH="tiny", IMAGE_SIZE=SIDE, **numbers))
    seen = []
    head.image_encoder.register_forward_pre_hook(lambda _, views: seen.append(views[0]))
    head.encode([torch.tensor([5.0, 12.0, 21.0]).view(3, 1, 1).expand(3, SIDE, SIDE)])
    # By hand: 5 - 1 over 4, 12 - 2 over 5 and 21 - 3 over 6.
    expected = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE)
    torch.testing.assert_close(seen[0], expected)


def test_positions_stay_in_full_precision_under_bfloat16(tiny_cfg):
    head = build_mask_head(tiny_cfg)
    expected = head.prompt_encoder.get_dense_pe()
    head.bfloat16()
    layer = head.prompt_encoder.pe_layer
    assert layer.positional_encoding_gaussian_matrix.dtype == torch.float32
    assert head.mask_decoder.iou_token.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head._image_positions(), expected)
        assert not torch.equal(head.prompt_encoder.get_dense_pe().float(), expected)
