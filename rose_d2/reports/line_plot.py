"""Plots of measured numbers: panels in rows of three, a line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rose_d2.files import whole_file

_COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title: what is drawn, with its unit.
        axis: what it is drawn against.
        lines: name of a line -> its points, (x, y) in ascending x.
        logarithmic: of the x axis, with a tick at every point.
    """

    title: str
    axis: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = False


def save_panels(panels: Sequence[Panel], path: str | Path) -> None:
    """Write a PNG of panels; the last one has the legend, if lines have names.

    Args:
        panels: at least one.
        path: the file.
    """
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 3.6 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for name, points in panel.lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name or None)
        if panel.logarithmic:
            axes.set_xscale("log")
            ticks = sorted({x for points in panel.lines.values() for x, _ in points})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set(title=panel.title, xlabel=panel.axis, ylim=(0, None))
        axes.grid(alpha=0.3)
    if any(panels[-1].lines):
        axes.legend(fontsize=7)
    with whole_file(Path(path)) as partial:
        figure.savefig(partial)
