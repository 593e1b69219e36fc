"""Plots hold every panel and point that they are given."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from rose_d2.reports.line_plot import Panel, save_panels


@pytest.mark.parametrize(("count", "size"), [(1, (400, 360)), (3, (1200, 360)), (4, (1200, 720))])
def test_panels_come_in_rows_of_three(tmp_path, monkeypatch, count, size):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path: drawn.append(figure) or save(figure, path)
    )
    panels = [Panel(f"cost {i}", "pixels", {"ours": [(1, 2), (10, 3)]}, True) for i in range(count)]
    save_panels(panels, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == size
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [panel.title for panel in panels]
    for axes in figure.axes:
        assert axes.lines[0].get_xydata().tolist() == [[1, 2], [10, 3]]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10"]
        assert axes.get_ylim()[0] == 0
    assert [axes.get_legend() is not None for axes in figure.axes] == [False] * (count - 1) + [True]
