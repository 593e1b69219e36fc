"""Pieces of Markdown: tables, numbers, folded parts."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

DASH = "–"
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\|`*_[]#~"})


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

    Args:
        text: any text, for example a class name.
    """
    return html.escape(" ".join(text.split()), quote=False).translate(_SPECIAL)


def number(value: float | None, digits: int = 2) -> str:
    """A number with fixed decimals; a dash where there is none or it is not finite.

    Args:
        value: in percent, as the evaluators report.
        digits: decimals.
    """
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table.

    Args:
        header: one title per column.
        rows: cells, Markdown already; a missing last cell is empty.
        texts: the first so many columns are texts, the others numbers and aligned right.
    """
    rules = [":--" if column < texts else "--:" for column in range(len(header))]
    lines = [header, rules, *([*row, *[""] * (len(header) - len(row))] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def folded(summary: str, body: str) -> str:
    """A part that is closed until the reader opens it.

    Args:
        summary: plain text of its title.
        body: Markdown.
    """
    title = html.escape(" ".join(summary.split()), quote=False)
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"
