"""A session on a small random model: answers, memory, cache and mistakes."""

import numpy as np
import pytest
import torch

from rose_d2.modeling.meta_arch.rose import RefinementPrompt
from rose_d2.predictor.predictor import RosePredictor
from rose_d2.predictor.questions import image_input, segments_from_output
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.instructions import build_instruction
from rose_d2.structures.segments import Segment

HEIGHT, WIDTH = 60, 90


@pytest.fixture
def predictor(tiny_cfg, tiny_model):
    return RosePredictor(tiny_cfg, model=tiny_model)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def session(predictor, image):
    return predictor.open(image)


@pytest.fixture
def encoder_calls(predictor, monkeypatch):
    """Counts what the two image encoders are run for."""
    calls = {"sam": 0, "lmm": 0}
    model = predictor.model

    def count(key, owner, name):
        run = getattr(owner, name)

        def counted(*args):
            calls[key] += 1
            return run(*args)

        monkeypatch.setattr(owner, name, counted)

    count("sam", model.mask_head, "encode")
    count("lmm", model.backbone, "encode_image")
    return calls


def dog(left=10, right=50, name="dog", score=0.75):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[20:50, left:right] = True
    return Segment(mask, name, score, 0.5)


def everything(session):
    """What must not change when a question fails."""
    return session.segments, session.dialogue, session._state.next_id, len(session._state.past)


def test_one_encoding_serves_all_questions_without_a_prior(session, encoder_calls):
    session.segment(min_score=0)
    session.refer("the dog")
    session.missed((10, 10, 40, 40))
    session.name((10, 10, 40, 40))
    assert encoder_calls == {"sam": 1, "lmm": 1}


def test_sam_is_run_once_and_the_lmm_once_a_prior_mask(session, encoder_calls):
    (first, second) = session.add(dog(), dog(40, 80))
    session.refine(first, "incomplete")
    assert encoder_calls == {"sam": 1, "lmm": 1}
    session.undo()
    session.refine(first, "This is not a dog.")
    assert encoder_calls == {"sam": 1, "lmm": 1}, "the same prior mask"
    session.refine(second)
    assert encoder_calls == {"sam": 1, "lmm": 2}
    session.refer("the dog")
    assert encoder_calls == {"sam": 1, "lmm": 3}, "no prior mask"


def test_a_marked_box_has_features_of_its_own(tiny_cfg, tiny_model, image):
    tiny_model.refinement_prompt = RefinementPrompt(box_as_mask=True)
    convolution = tiny_model.backbone.vision_tower.embeddings.patch_embedding
    with torch.no_grad():
        convolution.weight[:, 3] = 0.05
    session = RosePredictor(tiny_cfg, model=tiny_model).open(image)
    session.segment()
    (first,) = session.missed((45, 0, 90, 30))
    session.undo()
    (second,) = session.missed((0, 30, 45, 60))
    fresh = RosePredictor(tiny_cfg, model=tiny_model).open(image)
    assert first.score != second.score
    assert fresh.missed((0, 30, 45, 60))[0].score == second.score


def test_what_was_asked_for_is_repeated_when_its_mask_is_refined(session):
    (found,) = session.refer("the dog")
    (finer,) = session.refine(found)
    assert (found.expression, finer.expression) == ("the dog", "the dog")
    (renamed,) = session.name(finer)
    (finest,) = session.refine(renamed, situation="mask")
    asked, repair = session.dialogue[-2].sent.split("Please output the segmentation mask. ")
    assert asked == "What is the dog in this image? "
    assert repair.startswith("This segmentation mask is incomplete")
    session.add(dog(), replacing=finest)
    session.refine(session.segments[0], situation="category")
    assert "the dog" not in session.dialogue[-2].sent
    (added,) = session.add(dog())
    assert added.expression is None
    session.refine(added)
    assert session.dialogue[-2].sent.startswith("This segmentation mask is incomplete")


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic", "referring", "refinement"])
def test_answers_equal_those_of_the_model_without_cache(predictor, session, image, task):
    session.segment()  # fills the cache
    old = session.add(dog())[0]
    session.refine(old)
    session.undo()
    item = image_input(predictor.cfg, image)
    if task == "referring":
        item["conversation"] = Conversation(build_instruction(task, description="the dog"))
        found = session.refer("the dog")
    elif task == "refinement":
        found = session.refine(old, "This is not a dog.")
        # 84 pixels a side: columns 10-50 of 90, rows 20-50 of 60.
        prior = torch.zeros(1, 84, 84)
        prior[:, 28:70, 9:47] = 1
        item["conversation"] = Conversation(session.dialogue[-2].sent)
        item["prior_mask"] = prior
        item["answer_box"] = (107, 333, 559, 833)  # the prior's, of 999
    else:
        item["conversation"] = Conversation(build_instruction(task))
        found = session.segment(task, min_score=0)
    with torch.no_grad():
        (output,) = predictor.model([item | {"task": task}])
    expected = segments_from_output(output, "referring" if task == "refinement" else task)
    assert len(found) == len(expected) > 0 or task == "panoptic"
    for one, two in zip(found, expected, strict=True):
        assert (one.mask == two.mask).all()
        assert one.category_name == two.category_name
        assert (one.score, one.name_score) == (two.score, two.name_score)


def test_the_words_of_the_user_and_the_box_reach_the_model(session):
    old = session.add(dog())[0]
    session.refine(old, "the tail is missing")
    asked, said = session.dialogue[-2:]
    assert (asked.who, asked.text, asked.segment_ids) == ("user", "the tail is missing", (old.id,))
    assert asked.sent.startswith("the tail is missing. This segmentation mask is incomplete")
    assert "[107, 333, 559, 833]" in asked.sent
    assert said.who == "rose"
    session.undo()
    session.refine(old, "This is not a dog")
    assert "wrongly predicted as dog" in session.dialogue[-2].sent
    session.missed((45, 0, 200, 30), "a bird")
    assert session.dialogue[-2].sent.startswith("a bird. Please segment target region")
    assert "[500, 0, 999, 500]" in session.dialogue[-2].sent


def test_a_repaired_segment_stands_where_the_old_one_stood(session):
    first, second = session.add(dog(), dog(40, 80, "cat"))
    (new,) = session.refine(first, "the tail is missing")
    assert session.segments == (new, second)
    assert (new.replaces, new.category_name, new.name_score) == (first.id, "dog", 0.5)
    assert not (new.mask == first.mask).all()
    (renamed,) = session.refine(second.id, "This is not a cat")
    assert session.segments == (new, renamed)
    assert renamed.category_name != "cat", "the random model names it otherwise"


def test_an_added_mask_can_take_the_place_of_another(session):
    first, second = session.add(dog(), dog(40, 80, "cat"))
    (mine,) = session.add(dog(5, 60), replacing=first)
    assert session.segments == (mine, second)
    assert mine.replaces == first.id
    assert "in the place of 1" in session.dialogue[-1].text
    with pytest.raises(ValueError, match="does not stand"):
        session.add(dog(), replacing=first)
    assert session.undo().segments == (first, second)


def test_a_nameless_mask_gets_the_generated_name(session):
    (new,) = session.refine(session.add(dog(name=""))[0])
    assert new.category_name


def test_naming_keeps_the_mask(session):
    (old,) = session.add(dog())
    (renamed,) = session.name(old)
    assert (renamed.mask == old.mask).all()
    assert (renamed.replaces, session.segments) == (old.id, (renamed,))
    (named,) = session.name(dog().mask)
    assert (named.mask == dog().mask).all()
    assert session.segments == (renamed, named)
    (boxed,) = session.name((10, 20, 50, 50))
    assert boxed.category_name
    assert "[111, 333, 555, 833]" in session.dialogue[-2].sent


def test_segmenting_anew_replaces_everything(session):
    session.add(dog())
    found = session.segment("instance", ["dog", "cat"], min_score=0)
    assert session.segments == tuple(found)
    assert {segment.category_name for segment in found} <= {"dog", "cat"}


def test_undo_goes_back_step_by_step(session):
    (old,) = session.add(dog())
    session.refine(old)
    session.segment(min_score=0)
    session.undo()
    assert [segment.replaces for segment in session.segments] == [old.id]
    back = session.undo()
    assert back.segments == session.segments == (old,)
    assert len(back.dialogue) == len(session.dialogue) == 1
    assert len(session.undo()) == 0
    with pytest.raises(ValueError, match="nothing to undo"):
        session.undo()


def test_ids_are_never_used_twice(session):
    (gone,) = session.add(dog())
    session.undo()
    (new,) = session.add(dog())
    assert new.id > gone.id
    with pytest.raises(ValueError, match="does not stand"):
        session.refine(gone)


def test_where_the_model_draws_nothing_the_segment_stays(session, monkeypatch):
    (old,) = session.add(dog())
    monkeypatch.setattr("rose_d2.predictor.session.segments_from_output", lambda *args: [])
    assert session.refine(old).segments == session.segments == (old,)
    assert "stays as it is" in session.dialogue[-1].text
    assert len(session.refer("the cat")) == 0
    assert session.dialogue[-1].text == "I found nothing."
    assert session.segments == (old,)


def test_an_answer_is_a_sequence_with_the_dialogue_so_far(session):
    answer = session.add(dog(), dog(40, 80))
    assert [segment.id for segment in answer] == [1, 2]
    assert answer[-1] is answer.segments[1]
    session.refer("the dog")
    assert len(answer.dialogue) == 1
    assert len(session.dialogue) == 3


def test_what_is_remembered_cannot_be_changed_from_outside(session, image):
    mask = dog().mask.copy()
    (kept,) = session.add(Segment(mask, "dog", 0.9))
    mask[:] = image[:] = 0
    assert kept.mask.sum() == 30 * 40
    assert session.image.any()
    with pytest.raises(ValueError, match="read-only"):
        kept.mask[:] = False


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.refine(99), "does not stand"),
        (lambda s: s.refine(True), "its id is needed"),
        (lambda s: s.refine(dog()), "bring a mask of your own in with add"),
        (lambda s: s.refine(1, " "), "text is empty"),
        (lambda s: s.refine(1, ""), "text is empty"),
        (lambda s: s.refine(1, "see <image>"), "only the model uses"),
        (lambda s: s.refine(1, situation="missed"), r"use missed\(box\)"),
        (lambda s: s.refer("  "), "empty"),
        (lambda s: s.segment("boxes"), "choose one of"),
        (lambda s: s.segment("instance", []), "one or more names"),
        (lambda s: s.missed((95, 0, 99, 10)), "no area inside the image"),
        (lambda s: s.missed((10, 10, 10, 20)), "no area"),
        (lambda s: s.missed((20, 10, 10, 20)), "no area"),
        (lambda s: s.missed((1, 2, 3)), "four numbers"),
        (lambda s: s.missed((1, 2, 3, float("nan"))), "four numbers"),
        (lambda s: s.missed("left"), "four numbers"),
        (lambda s: s.missed((1, 2, 30, 40), ""), "text is empty"),
        (lambda s: s.name(np.zeros((HEIGHT, WIDTH), bool)), "mask is empty"),
        (lambda s: s.name(np.ones((WIDTH, HEIGHT), bool)), "for an image of"),
        (lambda s: s.name((0, 70, 10, 80)), "no area inside"),
        (lambda s: s.name(dog()), "bring a mask of your own"),
        (lambda s: s.add(), "Nothing to add"),
        (lambda s: s.add(dog(), dog(60, 60)), "mask is empty"),
        (lambda s: s.add(dog().mask), "Segment"),
    ],
)
def test_mistakes_say_what_to_do_and_change_nothing(session, ask, message):
    session.add(dog())
    before = everything(session)
    with pytest.raises(ValueError, match=message):
        ask(session)
    assert everything(session) == before


def test_a_segment_of_another_image_is_refused(predictor, session, image):
    session.add(dog())
    (foreign,) = predictor.open(image[::-1].copy()).add(dog())
    for ask in (session.refine, session.name):
        with pytest.raises(ValueError, match="belongs to another session"):
            ask(foreign)
    (taken,) = session.add(foreign)
    assert session.segments[-1] is taken


def test_a_model_that_fails_changes_nothing(session, predictor, monkeypatch):
    session.add(dog())
    before = everything(session)

    def out_of_memory(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor.model, "inference", out_of_memory)
    for ask in (session.segment, lambda: session.refine(1), lambda: session.refer("the dog")):
        with pytest.raises(RuntimeError, match="out of memory"):
            ask()
    assert everything(session) == before


def test_images_of_another_kind_are_refused(predictor):
    with pytest.raises(ValueError, match="uint8 RGB"):
        predictor.open(np.zeros((4, 4)))


@pytest.mark.parametrize("prior_quality", [-9.0, 9.0])
def test_the_better_rated_mask_stays_where_the_config_says_so(
    tiny_cfg, tiny_model, image, prior_quality
):
    tiny_cfg.MODEL.ROSE.LOSS_WEIGHT.QUALITY = 1.0
    tiny_cfg.TEST.REFINEMENT.KEEP_BETTER = True
    tiny_model.mask_head.mask_decoder.iou_prediction_head.register_forward_hook(
        lambda _, inputs, output: torch.tensor([[0.0, prior_quality, 0.0, 0.0]])
    )
    session = RosePredictor(tiny_cfg, model=tiny_model).open(image)
    old = session.add(dog())[0]
    (new,) = session.refine(old, "the tail is missing")
    assert (new.mask == old.mask).all() == (prior_quality > 0)


def test_the_box_in_the_words_reaches_the_model_as_numbers(session, predictor, monkeypatch):
    asked = []
    forward = predictor.model.forward
    monkeypatch.setattr(
        predictor.model, "forward", lambda items: asked.extend(items) or forward(items)
    )
    old = session.add(dog())[0]
    session.refine(old, "the tail is missing")
    session.missed((45, 0, 200, 30))
    session.name((45, 0, 200, 30))
    session.name(session.segments[0])
    boxes = [(107, 333, 559, 833), (500, 0, 999, 500), (500, 0, 999, 500), None]
    assert [item.get("named_box") for item in asked] == boxes
