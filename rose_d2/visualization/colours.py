"""The colour of a category, on masks and on labels."""

import colorsys
import zlib

from detectron2.utils.colormap import colormap

_LABEL_LUMINANCE = 0.65


def colour_of(name: str) -> tuple[float, float, float]:
    """The colour of a category: the same for a name in every picture and every run.

    Args:
        name: a generated name; upper case and spacing make no difference.

    Returns:
        (red, green, blue) in [0, 1].
    """
    key = " ".join(name.casefold().split())
    return _PALETTE[zlib.crc32(key.encode("utf-8")) % len(_PALETTE)]


def _build_palette() -> list[tuple[float, float, float]]:
    """detectron2's colours without greys and near-blacks, which vanish on a photograph."""
    distinct = dict.fromkeys(tuple(map(float, row)) for row in colormap(rgb=True, maximum=1))
    hsv = {colour: colorsys.rgb_to_hsv(*colour) for colour in distinct}
    return [colour for colour, (_, s, v) in hsv.items() if s >= 0.35 and v >= 0.6]


_PALETTE = _build_palette()


def lightened(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """Mix a colour with white until it is readable on the dark background of a label."""
    red, green, blue = colour
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    white = max(0.0, (_LABEL_LUMINANCE - luminance) / (1 - luminance))
    return tuple(white + (1 - white) * channel for channel in colour)
