"""The lexical alignment curve: the score of a dataset as more and more mapping rules count.

The curve is that of "Benchmarking Open-ended Segmentation" (ICLR 2026): a benchmark score of a
model that names things freely depends on which of its names are taken for a class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_TITLES = {
    "bbox_levels": "AP (boxes)",
    "segm_levels": "AP (masks)",
    "sem_seg_levels": "mIoU",
    "panoptic_seg_levels": "PQ",
    "names_levels": "right class",
}


_STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"))


_PIXELS, _DPI = (800, 440), 100


_LEAST_SPAN = 6.0  # points of the score axis


def alignment_curves(
    tasks: Mapping[str, Any], *, with_names: bool = True
) -> dict[str, dict[str, float]]:
    """The curves among the results of one dataset.

    Args:
        tasks: task -> metric -> number; curves are the tasks that end in "_levels".
        with_names: also the share of found objects with the right class. It is far above the
            benchmark scores; in one picture their steps could not be seen.

    Returns:
        name of the metric -> level -> score, levels in order.
    """
    return {
        _TITLES.get(task, task.removesuffix("_levels")): dict(levels)
        for task, levels in tasks.items()
        if task.endswith("_levels") and levels and (with_names or task != "names_levels")
    }


def curve_file_name(dataset: str) -> str:
    """Name of a dataset's picture, without characters that file systems or links dislike.

    Args:
        dataset: a registered name.
    """
    return f"alignment_curve_{re.sub(r'[^A-Za-z0-9_.+-]', '_', dataset)}.png"


def draw_alignment_curve(
    path: str | Path, dataset: str, curves: Mapping[str, Mapping[str, float]], headline: str
) -> None:
    """Draw the curves of one dataset, 800 pixels wide.

    Args:
        path: the PNG to write.
        dataset: for the title.
        curves: from `alignment_curves`.
        headline: the level of the headline numbers; it is marked.
    """
    levels = list(dict.fromkeys(level for curve in curves.values() for level in curve))
    figure = Figure(figsize=(_PIXELS[0] / _DPI, _PIXELS[1] / _DPI), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if headline in levels:
        axes.axvline(levels.index(headline), color="0.6", linestyle="--", linewidth=1.2, zorder=1)
    lines = [[_or_nan(curve.get(level)) for level in levels] for curve in curves.values()]
    for index, (title, scores) in enumerate(zip(curves, lines, strict=True)):
        colour, marker = _STYLES[index % len(_STYLES)]
        axes.plot(scores, color=colour, marker=marker, markersize=7, linewidth=2, label=title)
        for end in sorted({0, len(levels) - 1}):
            _label(axes, end, scores[end], colour, above=scores[end] >= max(s[end] for s in lines))
    axes.set_xticks(range(len(levels)), _tick_labels(levels, headline), fontsize=10.5)
    axes.set_xlim(-0.4, len(levels) - 0.6)
    axes.set_ylim(*_limits([score for line in lines for score in line]))
    axes.tick_params(axis="y", labelsize=11)
    axes.set_ylabel("score (%)", fontsize=12)
    axes.set_xlabel("mapping rules that count, each with all before it", fontsize=12)
    axes.set_title(f"Lexical alignment curve, {dataset}", fontsize=13)
    axes.grid(axis="y", color="0.9")
    axes.legend(fontsize=11, loc="best")
    canvas.print_png(str(path))


def _or_nan(score: float | None) -> float:
    return math.nan if score is None else score


def _limits(scores: Sequence[float]) -> tuple[float, float]:
    """Room for the values at the ends; a flat line is not blown up into steps."""
    known = [score for score in scores if math.isfinite(score)] or [0.0]
    low, high = min(known), max(known)
    margin = max(0.25 * (high - low), _LEAST_SPAN / 2 - (high - low) / 2)
    return low - margin, high + margin


def _tick_labels(levels: Sequence[str], headline: str) -> list[str]:
    """One word a line: eight levels share 800 pixels."""
    return [
        level.replace(" ", "\n") + ("\n(headline)" if level == headline else "") for level in levels
    ]


def _label(axes: Any, index: int, score: float, colour: str, *, above: bool) -> None:
    """Write a value at the end of a line; those between are in the table."""
    if math.isfinite(score):
        axes.annotate(
            f"{score:.1f}",
            (index, score),
            xytext=(0, 9 if above else -17),
            textcoords="offset points",
            ha="center",
            fontsize=11,
            color=colour,
        )
