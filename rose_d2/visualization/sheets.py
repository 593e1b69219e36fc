"""Sheets of pictures."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from rose_d2.visualization.visualizer import printable

_GAP = 12
_WHITE = (255, 255, 255)


def contact_sheet(
    pictures: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    cell: int = 480,
) -> np.ndarray:
    """Arrange pictures in rows, each fitted into a square cell with its caption below.

    Args:
        pictures: uint8 arrays (H, W, 3) of any sizes.
        captions: one text a picture, shortened to the cell's width; None leaves them out.
        columns: pictures a row; None makes the sheet about as wide as high, at most 4 columns.
        cell: side of a cell in pixels.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: if there is no picture or the captions differ in number.
    """
    if not pictures:
        raise ValueError("A contact sheet needs at least one picture, got none.")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(
            f"Got {len(captions)} captions for {len(pictures)} pictures; give one each or None."
        )
    columns = columns or min(4, math.ceil(math.sqrt(len(pictures))))
    captions = [""] * len(pictures) if captions is None else captions
    cells = [_cell(*pair, width=cell) for pair in zip(pictures, captions, strict=True)]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(c.height for c in row) + _GAP for row in rows]
    width = _GAP + len(rows[0]) * (cell + _GAP)
    sheet = Image.new("RGB", (width, _GAP + sum(heights)), _WHITE)
    for row, bottom in zip(rows, itertools.accumulate(heights), strict=True):
        for column, drawn in enumerate(row):
            # Bottoms aligned, so that the captions of a row stand on one line.
            sheet.paste(drawn, (_GAP + column * (cell + _GAP), bottom - drawn.height))
    return np.asarray(sheet)


def _cell(picture: np.ndarray, caption: str, width: int) -> Image.Image:
    """A picture fitted into a square of this width, with its caption below if it has one."""
    image = Image.fromarray(picture)
    scale = width / max(image.size)
    # Not ImageOps.contain, which gives a picture of 1 x 3000 no width at all.
    thumbnail = image.resize(
        [max(1, round(scale * side)) for side in image.size], Image.Resampling.BICUBIC
    )
    font = ImageFont.truetype(findfont("DejaVu Sans"), 16)
    caption_height = 28 if caption else 0
    cell = Image.new("RGB", (width, thumbnail.height + caption_height), _WHITE)
    cell.paste(thumbnail, ((width - thumbnail.width) // 2, 0))
    text = _fitted(printable(caption), font, width)
    place = (width / 2, thumbnail.height + 5)
    ImageDraw.Draw(cell).text(place, text, (40, 40, 40), font, anchor="ma")
    return cell


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while len(text) > 2 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text
