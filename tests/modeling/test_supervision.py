"""What the training half makes of datasets and names."""

import math

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from rose_d2.layers.logit_masks import LogitMasks
from rose_d2.modeling.supervision import NO_TARGET_NAME, LossWeights, PairSupervision, RoseCriterion
from rose_d2.structures.category_names import CategoryNames

TASKS = ("instance", "referring", "panoptic", "refinement", "region", "semantic")
ONES = LossWeights(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


def test_bank_is_the_vocabulary_without_held_out_classes(tiny_model):
    name = "rose_test_held_out"
    MetadataCatalog.get(name).set(
        thing_classes=["dog", "blue car", "dog"], evaluator_type="coco", unseen_classes=["blue car"]
    )
    bank = tiny_model.supervisor._bank_names
    assert bank(name, CategoryNames(["dog"])) == ("dog",)
    # A name outside the vocabulary and the dummy of an image without target are added.
    assert bank(name, CategoryNames(["zebra", ""])) == ("dog", "zebra", NO_TARGET_NAME)


def test_only_an_image_with_one_asked_object_is_ranked(tiny_cfg, make_input):
    tiny_cfg.MODEL.ROSE.LOSS_WEIGHT.RANKING = 1.0
    torch.manual_seed(0)
    model = build_model(tiny_cfg).train()
    one = make_input()["instances"][:1]
    rival = torch.tensor([[50.0, 64.0]])
    items = [make_input(task, instances=one, negative_points=rival) for task in TASKS]
    losses, by_image = losses_by_image(model, items)
    ranked = by_image["loss_ranking"] > 0
    assert ranked.tolist() == [task in ("referring", "refinement", "region") for task in TASKS]
    losses["loss_ranking"].backward()
    assert any(p.grad.any() for p in model.patch_analyzer.objectness.parameters())


def test_masks_and_the_priors_are_rated_by_their_overlap(tiny_cfg, make_input, monkeypatch):
    tiny_cfg.MODEL.ROSE.LOSS_WEIGHT.QUALITY = 2.0
    torch.manual_seed(0)
    model = build_model(tiny_cfg).train()
    one = make_input()["instances"][:1]
    (mask,) = one.gt_masks.tensor
    whole = torch.full((1, *mask.shape), 5.0)  # logits of everything
    monkeypatch.setattr(model.mask_head, "upscale", lambda logits, *_: LogitMasks(whole))
    ratings = torch.zeros(1, 4)
    model.mask_head.mask_decoder.iou_prediction_head.register_forward_hook(
        lambda _, inputs, output: output * 0 + ratings
    )
    share = mask.sum() / mask.numel()
    items = [
        make_input("refinement", instances=one),
        make_input("refinement", instances=one, prior_mask=mask[None].float()),
        make_input("refinement", instances=one, prior_mask=torch.ones(1, *mask.shape)),
        make_input("refinement", instances=one[:0], prior_mask=torch.ones(1, *mask.shape)),
    ]
    losses, by_image = losses_by_image(model, items)
    expected = 2 * torch.stack([share**2, share**2 + 1, 2 * share**2, torch.tensor(0.0)])
    torch.testing.assert_close(by_image["loss_quality"], expected)
    ratings[0, 0], ratings[0, 1] = share, 1
    losses, by_image = losses_by_image(model, items[1:2])
    assert by_image["loss_quality"].item() == pytest.approx(0, abs=1e-6)
    losses["loss_quality"].backward()


def losses_by_image(model, items):
    """What the model returns, and what a hook sees."""
    seen = []
    handle = model.supervisor.register_loss_hook(lambda *args: seen.append(args))
    with EventStorage():
        losses = model.train()(items)
        handle.remove()
        model(items)
    ((inputs, by_image),) = seen
    assert inputs is items
    return losses, by_image


def test_a_hook_sees_the_loss_terms_of_each_image(tiny_model, make_input):
    items = [make_input(), make_input("panoptic", response="There are 2 dog in this image.")]
    losses, kept = losses_by_image(tiny_model, items)
    assert set(kept) == set(losses) and "loss_quality" not in losses
    for name, values in kept.items():
        assert values.shape == (2,) and not values.requires_grad
        assert values.mean().item() == pytest.approx(losses[name].item())
    assert kept["loss_text"][0] != kept["loss_text"][1]


def supervision(mask_logits, category_losses, weights):
    """Pairs whose targets are all-ones 2 x 2 masks and the first of two classes."""
    count = len(weights)
    return PairSupervision(
        mask_logits=torch.tensor(mask_logits).view(count, 1, 1).expand(count, 2, 2),
        mask_targets=torch.ones(count, 2, 2),
        valid=torch.ones(2, 2, dtype=torch.bool),
        category_losses=torch.tensor(category_losses),
        quality_losses=torch.zeros(count),
        siglip_embeddings=torch.tensor([[1.0, 0.0]]).expand(count, 2),
        siglip_bank=torch.eye(2),
        siglip_targets=torch.zeros(count, dtype=torch.long),
        weights=torch.tensor(weights),
    )


def test_text_is_a_mean_over_the_tokens_of_an_image():
    # Uniform logits over 4 words cost log 4 a token; the second image has no response.
    logits = torch.zeros(3, 4)
    loss = RoseCriterion(ONES, 1.0).text(
        logits, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0]), num_images=2
    )
    torch.testing.assert_close(loss, torch.tensor([math.log(4), 0.0]))


def test_objectness_is_a_mean_over_sampled_patches():
    logits = [torch.tensor([0.0, 0.0]), torch.tensor([100.0]), torch.zeros(0)]
    targets = [torch.tensor([True, False]), torch.tensor([True]), torch.zeros(0, dtype=torch.bool)]
    loss = RoseCriterion(ONES, 1.0).objectness(logits, targets)
    torch.testing.assert_close(loss, torch.tensor([math.log(2), 0.0, 0.0]))


def test_ranking_sets_the_asked_patches_against_their_rivals():
    criterion = RoseCriterion(LossWeights(ranking=2.0), 1.0)
    asked = [torch.tensor([1.0, 1.0]), torch.tensor([5.0]), torch.zeros(0)]
    rivals = [torch.zeros(2), torch.zeros(0), torch.tensor([3.0])]
    # -log(2e / (2e + 2)); an image without rivals or without an answer has nothing to rank.
    expected = 2 * math.log(1 + math.exp(-1))
    torch.testing.assert_close(criterion.ranking(asked, rivals), torch.tensor([expected, 0.0, 0.0]))


def test_pairs_of_one_object_share_its_weight():
    # Object A has two pairs of weight 1/2 with name losses 1 and 3, object B one pair with 6.
    image = supervision([0.0, 0.0, 0.0], [1.0, 3.0, 6.0], [0.5, 0.5, 1.0])
    losses = RoseCriterion(ONES, 1.0).pairs([image])
    torch.testing.assert_close(losses["loss_category"], torch.tensor([(0.5 + 1.5 + 6.0) / 2]))
    torch.testing.assert_close(losses["loss_mask_bce"], torch.tensor([math.log(2)]))
    # Dice of probability 1/2 on four pixels of ones: 1 - (2*2 + 1) / (2 + 4 + 1).
    torch.testing.assert_close(losses["loss_mask_dice"], torch.tensor([1 - 5 / 7]))
    # Cosines 1 and 0: -log(e / (e + 1)).
    torch.testing.assert_close(losses["loss_siglip"], torch.tensor([math.log(1 + math.exp(-1))]))


def test_image_without_targets_has_loss_zero():
    full, empty = supervision([0.0], [4.0], [1.0]), supervision([5.0], [9.0], [0.0])
    losses = RoseCriterion(ONES, 1.0).pairs([full, empty])
    torch.testing.assert_close(losses["loss_category"], torch.tensor([4.0, 0.0]))
    torch.testing.assert_close(losses["loss_mask_bce"], torch.tensor([math.log(2), 0.0]))


def test_weights_are_lisas_by_default():
    weights = LossWeights()
    assert (weights.mask_bce, weights.mask_dice) == (2.0, 0.5)
    image = supervision([0.0], [1.0], [1.0])
    plain = RoseCriterion(ONES, 1.0).pairs([image])
    weighted = RoseCriterion(weights, 1.0).pairs([image])
    torch.testing.assert_close(weighted["loss_mask_bce"], 2 * plain["loss_mask_bce"])
    torch.testing.assert_close(weighted["loss_mask_dice"], plain["loss_mask_dice"] / 2)


def test_mask_targets_are_made_for_the_objects_of_the_pairs_only(tiny_cfg, make_input, monkeypatch):
    tiny_cfg.MODEL.ROSE.PAIRS_PER_OBJECT, tiny_cfg.MODEL.ROSE.MAX_PAIRS = 1, 3
    model = build_model(tiny_cfg).train()
    made = []
    targets = model.mask_head.targets
    monkeypatch.setattr(
        model.mask_head, "targets", lambda masks, size: made.append(masks) or targets(masks, size)
    )
    instances = Instances.cat([make_input()["instances"]] * 5)
    with EventStorage():
        model([make_input(instances=instances)])
    (masks,) = made
    assert len(masks) <= 2 * 3 and len(instances) == 10
    assert len(masks) < len(instances)


def test_targets_follow_their_pairs(tiny_model, make_input):
    item = make_input()
    masks, size = item["instances"].gt_masks.tensor, item["sam_image"].shape[-2:]
    whole, valid = tiny_model.mask_head.targets(masks, tuple(size))
    device = torch.device("cpu")
    for objects in ([1, 0, 1], [1], [0, 0]):
        index = torch.tensor(objects)
        found = tiny_model.supervisor._mask_targets(item, item["instances"], index, device)
        assert torch.equal(found[0], whole[index]) and torch.equal(found[1], valid)
