import json
import logging

import numpy as np
import pytest

from rose_d2.predictor.predictor import RosePredictor
from rose_d2.predictor.session_state import SessionSegment, describe
from rose_d2.structures.segments import Segment


@pytest.fixture
def predictor(tiny_cfg, tiny_model):
    return RosePredictor(tiny_cfg, model=tiny_model)


@pytest.fixture
def session(predictor):
    """Held so far: a mask brought in, refined, an expression, and one undone question."""
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    session = predictor.open(image)
    mask = np.zeros((40, 50), dtype=bool)
    mask[5:30, 7:33] = True
    session.add(Segment(mask, "dög", 0.1 + 0.2, None, is_thing=False))
    session.refine(1, "the left part is missing")
    session.refer("the thing on the right")
    session.segment(min_score=0)
    session.undo()
    return session


def same(one, two):
    fields = (
        "id",
        "replaces",
        "category_name",
        "score",
        "name_score",
        "is_thing",
        "session_key",
        "expression",
    )
    assert [[getattr(s, f) for f in fields] for s in one] == [
        [getattr(s, f) for f in fields] for s in two
    ]
    assert all((a.mask == b.mask).all() for a, b in zip(one, two, strict=True))


def test_a_reopened_session_is_the_same_and_answers_the_same(predictor, session, tmp_path):
    session.save(tmp_path / "talk")
    assert sorted(p.name for p in (tmp_path / "talk").iterdir()) == ["image.png", "session.json"]
    reopened = predictor.reopen(tmp_path / "talk")
    assert (reopened.image == session.image).all()
    same(reopened.segments, session.segments)
    assert reopened.dialogue == session.dialogue
    same(reopened.refine(2, "Fix it"), session.refine(2, "Fix it"))
    same(reopened.segment(min_score=0), session.segment(min_score=0))
    assert reopened.dialogue == session.dialogue
    for _ in range(5):
        same(reopened.undo(), session.undo())
    assert reopened.dialogue == session.dialogue == ()


def test_segments_from_before_are_known_after(predictor, session, tmp_path):
    session.save(tmp_path)
    (refined,) = predictor.reopen(tmp_path).refine(session.segments[0])
    assert refined.replaces == session.segments[0].id


def test_saving_again_replaces_and_another_session_is_not_overwritten(predictor, session, tmp_path):
    session.save(tmp_path)
    session.undo()
    session.save(tmp_path)
    assert predictor.reopen(tmp_path).dialogue == session.dialogue
    other = predictor.open(session.image)
    with pytest.raises(ValueError, match="another session; save this one to another folder"):
        other.save(tmp_path)
    assert predictor.reopen(tmp_path).dialogue == session.dialogue


def test_another_config_is_logged(tiny_cfg, predictor, session, tmp_path, caplog):
    session.save(tmp_path)
    tiny_cfg.TEST.TOP_K = 7
    with caplog.at_level(logging.WARNING):
        RosePredictor(tiny_cfg, model=predictor.model).reopen(tmp_path)
    assert "another config" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("turns"),
        lambda content: content.update(version=2),
        lambda content: content.update(format="COCO"),
        lambda content: content.update(height=41),
        lambda content: content.update(standing=[77]),
        lambda content: content.update(next_id=1),
        lambda content: content["past"].append({"standing": [], "turns": 99}),
        lambda content: content["turns"][0].update(who="cat"),
        lambda content: content["segments"][0]["segmentation"].update(size=[50, 40]),
        lambda content: content["segments"][0].pop("score"),
    ],
)
def test_damaged_sessions_are_refused(predictor, session, tmp_path, damage):
    session.save(tmp_path)
    path = tmp_path / "session.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="cannot be reopened"):
        predictor.reopen(tmp_path)


def test_missing_and_unreadable_sessions_are_refused(predictor, session, tmp_path):
    with pytest.raises(FileNotFoundError, match="no session.json"):
        predictor.reopen(tmp_path / "none")
    session.save(tmp_path)
    (tmp_path / "session.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be reopened"):
        predictor.reopen(tmp_path)
    (tmp_path / "image.png").unlink()
    with pytest.raises(FileNotFoundError, match="image.png"):
        predictor.reopen(tmp_path)


def test_what_was_found_is_said_with_how_sure_the_names_are():
    mask = np.ones((2, 2), dtype=bool)
    dog = SessionSegment(mask, "dog", 0.5, 0.934, id=1)
    unknown = SessionSegment(mask, "", 0.5, None, id=2)
    assert describe([dog, unknown]) == "1 dog (93 %), 2 (no name)"
    assert describe([]) == "I found nothing."
