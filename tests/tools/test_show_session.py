from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import load_script

from rose_d2.checkpoint.weights import save_weights
from rose_d2.predictor.predictor import RosePredictor
from rose_d2.structures.segments import Segment

TOOL = Path(__file__).parents[2] / "tools" / "show_session.py"


@pytest.fixture
def tool():
    return load_script(TOOL)


@pytest.fixture
def held(tool, tiny_cfg, tiny_model):
    """A session with a dog and a red car, held at 90 pixels a picture."""
    session = RosePredictor(tiny_cfg, model=tiny_model).open(np.zeros((40, 60, 3), np.uint8))
    masks = np.zeros((2, 40, 60), dtype=bool)
    masks[0, 5:30, 5:25] = masks[1, 10:35, 30:55] = True
    session.add(Segment(masks[0], "dog", 0.9), Segment(masks[1], "red car", 0.8))
    return tool.ScriptedSession(session, panel=90)


def test_segments_are_found_by_id_and_by_name(held):
    assert "(about 1) the tail" in held.say("refine dog the tail is missing").you
    assert held.say('refine "red car" it\'s rough').you == "(about 2) it's rough"
    assert held.say("name 3").you.startswith("(about 3)")
    assert held.say("name last").you.startswith("(about 5)")


def test_copies_of_other_systems_are_brought_in_and_taken_back(held):
    masks = [segment.mask for segment in held.session.segments]
    damaged = held.say("damage dog")
    assert damaged.you == "Another system says: 3 dog."
    assert (damaged.before != damaged.after).any()
    assert [segment.id for segment in held.session.segments] == [3, 2]
    assert (held.session.segments[0].mask & masks[0]).sum() > 0
    assert (held.session.segments[0].mask != masks[0]).any()
    held.say("misname 2 cat")
    assert held.session.segments[1].category_name == "cat"
    assert (held.session.segments[1].mask == masks[1]).all()
    assert held.say("undo").rose == "As before: 3 dog, 2 red car."


def test_pictures_have_the_asked_size_and_show_the_box(held):
    turn = held.say("missed 10 10 30 30")
    assert turn.before.shape == turn.after.shape == (60, 90, 3)
    assert turn.before[15, 20].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("paint dog", "begins with one of"),
        ("refine wolf better", "no segment 'wolf'; there are: 1 'dog', 2 'red car'"),
        ("refine", "speaks of no segment"),
        ("missed 1 2 3", "four numbers"),
        ("refine dog", "text is empty"),
    ],
)
def test_lines_that_are_no_turn_are_refused(held, line, message):
    with pytest.raises(ValueError, match=message):
        held.say(line)


def test_the_transcript_shows_every_turn(tool, tiny_cfg, tiny_model, tmp_path, capsys, refusal):
    config, weights = tmp_path / "config.yaml", tmp_path / "model.safetensors"
    tiny_cfg.MODEL.WEIGHTS = str(weights)
    config.write_text(tiny_cfg.dump())
    save_weights(tiny_model, str(weights))
    Image.new("RGB", (60, 40), "gray").save(tmp_path / "image.png")
    script = tmp_path / "talk.txt"
    script.write_text("# a comment\nsegment instance\n\nrefer the dog\nundo\n")
    command = ["--config-file", config, "--image", tmp_path / "image.png", "--script", script]
    command = [*map(str, command), "--output", str(tmp_path / "out")]
    tool.main(command)
    assert "3 turns" in capsys.readouterr().out
    text = (tmp_path / "out" / "transcript.md").read_text()
    assert text.count("**You:**") == text.count("**ROSE:**") == 3
    for number in (1, 2, 3):
        assert f"![turn {number}](turn_{number}.jpg)" in text
        with Image.open(tmp_path / "out" / f"turn_{number}.jpg") as picture:
            assert 560 <= picture.width <= 640
    script.write_text("undo\n")
    assert "nothing to undo" in refusal(tool, command)


def test_an_exported_folder_is_all_it_needs(tool, exported, tmp_path):
    Image.new("RGB", (60, 40), "gray").save(tmp_path / "image.png")
    (tmp_path / "talk.txt").write_text("refer the dog\n")
    command = ["--config-file", exported / "config.yaml", "--image", tmp_path / "image.png"]
    command += ["--script", tmp_path / "talk.txt", "--output", tmp_path / "out"]
    tool.main([str(word) for word in (*command, "MODEL.WEIGHTS", exported)])
    assert "**ROSE:**" in (tmp_path / "out" / "transcript.md").read_text()
