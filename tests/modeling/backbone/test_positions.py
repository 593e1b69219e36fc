import pytest
import torch
from detectron2.modeling import build_backbone

from rose_d2.modeling.backbone.llava_builders import PatchPositions, sine_cosine_positions


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
