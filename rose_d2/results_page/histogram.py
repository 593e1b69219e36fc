"""A histogram of scores as inline SVG, in the colours of the page around it."""

from __future__ import annotations

from collections.abc import Sequence

_BINS = 20
_WIDTH, _HEIGHT = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 20, 12, 40


def score_histogram(scores: Sequence[float]) -> str:
    """Draw how many images have which score.

    Args:
        scores: in [0, 1].

    Returns:
        An <svg> element with 20 bars; classes `bar`, `axis` and `label` are for the page's style.
    """
    counts = [0] * _BINS
    for score in scores:
        counts[min(_BINS - 1, int(score * _BINS))] += 1
    highest = max(*counts, 1)
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    step, floor = plot_width / _BINS, _TOP + plot_height
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="Histogram: number of images by score">'
    ]
    for index, count in enumerate(counts):
        height = plot_height * count / highest
        low, high = 100 * index // _BINS, 100 * (index + 1) // _BINS
        parts.append(
            f'<rect class="bar" x="{_LEFT + index * step + 1:.1f}" y="{floor - height:.1f}" '
            f'width="{step - 2:.1f}" height="{height:.1f}">'
            f"<title>{low} to {high} %: {count}</title></rect>"
        )
    parts.append(f'<path class="axis" d="M{_LEFT} {floor}H{_WIDTH - _RIGHT}"/>')
    for percent in range(0, 101, 20):
        x = _LEFT + plot_width * percent / 100
        parts.append(_label(x, floor + 16, str(percent), "middle"))
    parts.append(_label(_LEFT + plot_width / 2, _HEIGHT - 6, "score (%)", "middle"))
    parts.append(_label(_LEFT - 6, _TOP + 8, str(highest), "end"))
    parts.append(_label(_LEFT - 6, floor, "0", "end"))
    return "".join(parts) + "</svg>"


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
