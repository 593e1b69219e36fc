"""Every figure is drawn, by a model that knows nothing."""

import numpy as np
import pytest
from PIL import Image
from scripts import load_script

from rose_d2.structures.segments import Segment
from rose_d2.synthetic.clipart import compose_sample


@pytest.fixture
def tool():
    return load_script("tools/make_figures.py")


@pytest.mark.slow
def test_all_figures_are_drawn(tool, exported, tmp_path, capsys):
    folder = tmp_path / "figures"
    assert tool.main(["all", "--model", str(exported), "--output", str(folder)]) == 0
    sizes = {"3": (6, 2), "4": (3, 2), "5": (3, 1), "6": (4, 3), "7": (4, 2)}
    assert set(tool.FIGURES) == set(sizes)
    for number, (columns, rows) in sizes.items():
        drawn = np.asarray(Image.open(folder / f"figure{number}.png"))
        assert drawn.shape[1] == 12 + columns * (tool.PANEL + 12)
        assert drawn.shape[0] < rows * (tool.PANEL + 60) and drawn.std() > 10
    assert len(capsys.readouterr().out.split()) == len(sizes)


def test_figure_3_takes_pictures_of_yours(tool, exported, tmp_path):
    picture = tmp_path / "photo.png"
    Image.fromarray(compose_sample(1, 0).image).save(picture)
    options = ["--model", str(exported), "--output", str(tmp_path)]
    assert tool.main(["3", "--input", str(picture), *options]) == 0
    assert Image.open(tmp_path / "figure3.png").width == 12 + tool.PANEL + 12
    assert tool.main(["3", "--input", str(tmp_path / "none.png"), *options]) == 1


def test_pictures_without_annotations_are_for_figure_3(tool, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["6", "--input", "photo.jpg"])
    assert "--input is for figure 3" in capsys.readouterr().err


class Listening:
    """A session that notes what it is told."""

    def __init__(self, segments):
        self.segments = segments
        self.told = []

    def missed(self, box):
        self.told.append(("missed", box))

    def refine(self, segment, situation="mask"):
        self.told.append((situation, segment.category_name))


def test_a_person_says_what_is_wrong_and_nothing_else(tool):
    scene = compose_sample(0, 1)
    things = [thing for thing in scene.objects if thing.area >= tool.FEWEST_PIXELS]
    assert len(things) >= 4
    rough = things[1].mask.copy()
    rough[np.flatnonzero(rough.any(axis=1))[::3]] = False
    session = Listening(
        [
            Segment(things[0].mask, things[0].name, 1.0),
            Segment(rough, things[1].name, 1.0),
            Segment(things[2].mask, "unicorn", 1.0),
            *(Segment(thing.mask, thing.name, 1.0) for thing in things[4:]),
        ]
    )
    assert tool.talk_about_mistakes(session, scene) == 3
    assert session.told == [
        ("mask", things[1].name),
        ("category", "unicorn"),
        ("missed", things[3].box),
    ]
