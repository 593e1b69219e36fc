import pytest
import torch

from rose_d2.refinement.regions import RefinementSettings, better_of_both
from rose_d2.refinement.rose_with_refinement import ROSEWithRefinement


def wrap(model, batch_size=8, **settings):
    return ROSEWithRefinement(
        model.eval(), settings=RefinementSettings(**settings), batch_size=batch_size
    )


@pytest.fixture
def instances(scene):
    """A good dog, half a cat called cat, and a third of the dog called cat."""
    instances = scene.instances(
        (scene.dog, 0, 0.9), (scene.box(30, 10, 40, 40), 1, 0.8), (scene.box(0, 0, 6, 20), 1, 0.7)
    )
    instances.mapping_rules = torch.zeros(3, dtype=torch.long)
    return instances


def test_instances_are_refined_and_the_first_answer_kept(scene, make_item, instances):
    model = scene.model(
        {"instances": instances, "levels": {"exact": {}}},
        [(scene.cat, 1, 0.4), (scene.dog, 0, 0.3)],
    )
    (output,) = wrap(model)([make_item("instance")])
    assert output["before"]["instances"] is instances
    assert instances.has("mapping_rules") and not output["instances"].has("mapping_rules")
    assert "levels" in output["before"] and "levels" not in output
    after = output["instances"]
    assert torch.equal(after.pred_masks, torch.stack([scene.dog, scene.cat, scene.dog]))
    assert list(after.pred_category_names) == ["dog", "cat", "dog"]
    assert torch.equal(after.scores, instances.scores)
    cat, dog = output["refinements"]
    assert (cat["situation"], cat["iou_before"], cat["iou_after"]) == (
        "mask",
        pytest.approx(1 / 3),
        1.0,
    )
    assert dog == {
        "round": 1,
        "situation": "category",
        "chosen_with": "ground truth",
        "name_before": "cat",
        "name_after": "dog",
        "class_before": 1,
        "class_after": 0,
        "target_class": 0,
        "box": [0, 0, 333, 500],
        "box_of": "target",
        "iou_before": pytest.approx(0.3),
        "iou_after": 1.0,
    }


def test_a_second_turn_shows_the_same_views_the_prior_and_its_box(scene, make_item, instances):
    model = scene.model({"instances": instances}, [(scene.cat, 1, 0.4), (scene.dog, 0, 0.3)])
    item = make_item("instance", candidates=["dog", "cat"])
    wrap(model, box="prior")([item])
    mask_turn, category_turn = model.turns
    for turn in model.turns:
        assert turn["image"] is item["image"] and turn["sam_image"] is item["sam_image"]
        assert turn["task"] == "refinement"
        assert turn["dataset_name"] == item["dataset_name"]
        assert turn["candidates"] == ["dog", "cat"]
        assert turn["prior_mask"].shape == (1, 84, 84)
        assert turn["prior_mask"].dtype == torch.float32
    # Columns 30 to 40 of 60 and rows 10 to 40 of 40, in a view of 84 pixels.
    expected = torch.zeros(1, 84, 84)
    expected[:, 21:84, 42:56] = 1
    assert torch.equal(mask_turn["prior_mask"], expected)
    assert mask_turn["conversation"].instruction == (
        "This segmentation mask is incomplete, please ensure the entire object is captured. "
        "The target is in the box [500, 250, 666, 999]."
    )
    assert "wrongly predicted as cat" in category_turn["conversation"].instruction


@pytest.mark.parametrize(
    ("box", "boxes"),
    [
        ("target", [(500, 250, 999, 999), (0, 0, 333, 500)]),
        ("prior", [(500, 250, 666, 999), (0, 0, 95, 500)]),
    ],
)
@pytest.mark.parametrize("within_box", [True, False])
def test_the_answer_is_looked_for_in_the_box_unless_told_otherwise(
    scene, make_item, instances, within_box, box, boxes
):
    model = scene.model({"instances": instances}, [(scene.cat, 1, 0.4), (scene.dog, 0, 0.3)])
    wrap(model, box=box, within_box=within_box)([make_item("instance")])
    for turn, named in zip(model.turns, boxes, strict=True):
        assert f"{list(named)}" in turn["conversation"].instruction or "wrongly" in str(turn)
        assert turn.get("answer_box") == (named if within_box else None)


def test_missed_shows_no_prior_but_the_box_of_the_ground_truth(scene, make_item):
    sem_seg = torch.zeros(3, *scene.size)
    sem_seg[1][scene.cat], sem_seg[2][~scene.cat & ~scene.dog] = 0.9, 0.9
    first = {**scene.semantic(sem_seg), "instances": scene.instances((scene.cat, 1, 0.9))}
    model = scene.model(first, [(scene.dog, 0, 0.5)])
    (output,) = wrap(model)([make_item("semantic")])
    (turn,) = model.turns
    assert not turn["prior_mask"].any()
    assert "[0, 0, 333, 500]" in turn["conversation"].instruction
    assert torch.equal(output["sem_seg_labels"] == 0, scene.dog)
    assert torch.equal(output["before"]["sem_seg"], sem_seg)
    assert [r["situation"] for r in output["refinements"]] == ["missed"]
    assert output["refinements"][0]["target_class"] == 0


def test_semantic_names_are_the_first_of_a_list(scene, make_item):
    """The cat's region is called by the class "dog, hound", and the dog is missed."""
    sem_seg = torch.zeros(3, *scene.size)
    sem_seg[0][scene.cat], sem_seg[2][~scene.cat] = 0.9, 0.9
    first = {**scene.semantic(sem_seg), "instances": scene.instances((scene.cat, 0, 0.9))}
    model = scene.model(first, [(scene.dog, 0, 0.5), (scene.cat, 1, 0.5)])
    wrap(model, worst_classes=2)([make_item("semantic")])
    assert "wrongly predicted as dog," in model.turns[1]["conversation"].instruction


@pytest.mark.parametrize("box", ["target", "prior"])
def test_every_referring_answer_is_refined(scene, make_item, box):
    first = {
        "ref_seg": scene.box(0, 0, 10, 20),
        "ref_patch": 0,
        "ref_score": 0.9,
        "instances": scene.instances((scene.box(0, 0, 10, 20), 0, 0.9)),
    }
    model = scene.model(first, [(scene.dog, 0, 0.3)])
    item = make_item("referring", ref_id=5, sent_id=0, sentence="the dog")
    (output,) = wrap(model, box=box)([item])
    assert torch.equal(output["ref_seg"], scene.dog)
    assert (output["ref_patch"], output["before"]["ref_patch"]) == (3, 0)
    (record,) = output["refinements"]
    assert (record["iou_before"], record["iou_after"]) == (0.5, 1.0)
    assert record["chosen_with"] == "every answer"
    (turn,) = model.turns
    # The first answer may lie on another object: its own box does not say where to look.
    named = {"target": (0, 0, 333, 500), "prior": (0, 0, 167, 500)}[box]
    assert turn.get("answer_box") == (named if box == "target" else None)
    assert turn["conversation"].instruction == (
        "What is the dog in this image? Please output the segmentation mask. "
        "This segmentation mask is incomplete, please ensure the entire object is captured. "
        f"The target is in the box {list(named)}."
    )


def test_the_sentence_decides_the_target_of_an_expression(scene, make_item):
    first = {"ref_seg": scene.cat, "instances": scene.instances((scene.cat, 1, 0.9))}
    for sent_id, iou in ((0, 0.0), (1, 1.0), (-1, 0.0)):
        model = scene.model(first, [(scene.cat, 1, 0.5)])
        item = make_item("referring", ref_id=5, sent_id=sent_id, sentence="the dog")
        (output,) = wrap(model)([item])
        assert output["refinements"][0]["iou_before"] == iou


def test_later_rounds_start_from_the_latest_result(scene, make_item):
    half = scene.box(0, 0, 10, 20)
    first = {"ref_seg": half, "instances": scene.instances((half, 0, 0.9))}
    model = scene.model(first, [(scene.box(0, 0, 15, 20), 0, 0.5), (scene.dog, 0, 0.5)])
    item = make_item("referring", ref_id=5, sent_id=0, sentence="the dog")
    (output,) = wrap(model, rounds=2, box="prior")([item])
    assert [(r["round"], r["iou_before"]) for r in output["refinements"]] == [(1, 0.5), (2, 0.75)]
    assert "[0, 0, 250, 500]" in model.turns[1]["conversation"].instruction
    assert torch.equal(output["ref_seg"], scene.dog)
    assert output["before"] is first


def test_second_turns_run_in_batches_and_return_to_their_image(scene, make_item, instances):
    other = scene.box(50, 30, 60, 40)
    answers = [(scene.cat, 1, 0.4), (scene.dog, 0, 0.3), (other, 1, 0.4), (other, 0, 0.3)]
    model = scene.model({"instances": instances}, answers)
    items = [make_item("instance"), make_item("panoptic"), make_item("instance", image_id=2)]
    first, panoptic, second = wrap(model, batch_size=3)(items)
    assert model.batch_sizes == [3, 3, 1]
    assert torch.equal(first["instances"].pred_masks[2], scene.dog)
    assert torch.equal(second["instances"].pred_masks[2], other)
    assert "before" not in panoptic


def test_an_empty_answer_leaves_the_region_as_it_was(scene, make_item, instances):
    nothing = torch.zeros(scene.size, dtype=torch.bool)
    model = scene.model({"instances": instances}, [(nothing, 1, 0.4), (nothing, 0, 0.3)])
    (output,) = wrap(model)([make_item("instance")])
    assert torch.equal(output["instances"].pred_masks, instances.pred_masks)
    assert all(r["iou_after"] == r["iou_before"] for r in output["refinements"])
    assert output["refinements"][1]["name_after"] == "cat"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"dataset_name": None}, "use RosePredictor"),
        ({"image_id": 77}, "has no item .*77"),
    ],
)
def test_inputs_without_ground_truth_are_refused(scene, make_item, instances, entries, message):
    model = scene.model({"instances": instances}, [])
    with pytest.raises(ValueError, match=message):
        wrap(model)([make_item("instance", **entries)])


def test_training_and_no_rounds_are_refused(scene, make_item, instances):
    model = wrap(scene.model({"instances": instances}, []))
    model.train()
    with pytest.raises(ValueError, match=r"\.eval\(\)"):
        model([make_item("instance")])
    with pytest.raises(ValueError, match="ROUNDS is 0"):
        RefinementSettings(rounds=0)


def test_a_real_model_refines_its_own_answers(tiny_model, make_item):
    """Random weights: whatever is drawn, the outputs keep their form."""
    first, second = wrap(tiny_model, max_instances=3, rounds=2)(
        [make_item("instance"), make_item("semantic", image_id=2)]
    )
    assert len(first["open_instances"]) == len(first["before"]["open_instances"]) > 0
    known = first["open_instances"].pred_classes
    assert first["instances"].pred_classes.tolist() == known[known >= 0].tolist()
    assert second["sem_seg"].shape == (3, 40, 60)
    assert second["sem_seg_labels"].shape == (40, 60)
    for output in (first, second):
        assert {r["round"] for r in output["refinements"]} <= {1, 2}


def test_sam_encodes_an_image_once_for_all_turns(tiny_model, make_item, monkeypatch):
    encoded, turns = [], []
    encode, forward = tiny_model.mask_head.encode, tiny_model.forward
    monkeypatch.setattr(
        tiny_model.mask_head, "encode", lambda images: encoded.append(len(images)) or encode(images)
    )
    monkeypatch.setattr(
        tiny_model, "forward", lambda items: turns.append(len(items)) or forward(items)
    )
    items = [make_item("instance"), make_item("semantic")]
    with torch.no_grad():
        outputs = wrap(tiny_model)(items)
    assert sum(len(output["refinements"]) for output in outputs) == sum(turns[1:]) > 2
    assert encoded == [2]


def test_all_regions_of_an_image_are_one_batch_of_the_language_model(
    tiny_cfg, tiny_model, make_item, monkeypatch
):
    batches, forward = [], tiny_model.backbone.forward
    monkeypatch.setattr(
        tiny_model.backbone,
        "forward",
        lambda images, *others: batches.append(len(images)) or forward(images, *others),
    )
    tiny_cfg.TEST.IMS_PER_BATCH = 1
    model = ROSEWithRefinement.from_config(tiny_cfg, tiny_model.eval())
    with torch.no_grad():
        (output,) = model([make_item("instance")])
    assert batches == [1, len(output["refinements"])]
    assert 1 < batches[1] <= tiny_cfg.TEST.REFINEMENT.MAX_INSTANCES


@pytest.mark.parametrize("keep_better", [False, True])
def test_a_mask_that_is_rated_higher_than_its_repair_stays(
    scene, make_item, instances, keep_better
):
    model = scene.model({"instances": instances}, [(scene.cat, 1, 0.4), (scene.dog, 0, 0.3)])
    ask = model.forward

    def rate(batched_inputs):
        outputs = ask(batched_inputs)
        for item, output in zip(batched_inputs, outputs, strict=True):
            if item["task"] == "refinement":
                answers = output["instances"]
                answers.mask_quality = torch.tensor([0.5])
                answers.prior_quality = torch.tensor([0.6])
        return outputs

    model.forward = rate
    (output,) = wrap(model, keep_better=keep_better)([make_item("instance")])
    after = output["instances"]
    assert torch.equal(after.pred_masks, instances.pred_masks) == keep_better
    assert list(after.pred_category_names) == ["dog", "cat", "dog"]
    assert [r["iou_after"] == r["iou_before"] for r in output["refinements"]] == [keep_better] * 2


def rated(scene, mask_quality, prior_quality):
    """An answer that draws the dog and calls it one."""
    instances = scene.instances((scene.dog, 0, 0.6))
    instances.mask_quality = torch.tensor([mask_quality])
    instances.prior_quality = torch.tensor([prior_quality])
    return {"ref_seg": scene.dog, "ref_score": 0.6, "instances": instances}


def test_the_mask_of_the_higher_rating_stays_with_the_answers_name(scene):
    answer = rated(scene, 0.5, 0.5)
    assert better_of_both(answer, scene.cat) is answer
    kept = better_of_both(rated(scene, 0.5, 0.6), scene.cat)
    assert torch.equal(kept["ref_seg"], scene.cat) and kept["ref_score"] == 0.6
    assert torch.equal(kept["instances"].pred_masks, scene.cat[None])
    assert kept["instances"].pred_boxes.tensor.tolist() == [[30, 10, 60, 40]]
    assert list(kept["instances"].pred_category_names) == ["dog"]


def test_an_answer_without_any_mask_is_left(scene):
    answer = rated(scene, 0.5, 0.6)
    answer["instances"] = answer["instances"][:0]
    assert better_of_both(answer, scene.cat) is answer
