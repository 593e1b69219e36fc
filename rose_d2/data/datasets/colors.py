"""Colours for datasets that come without."""

import colorsys

_GOLDEN_ANGLE = 0.618034


def distinct_colors(count: int) -> list[list[int]]:
    """One RGB colour per class, 0 to 255; neighbours in the list differ by the golden angle in hue.

    Args:
        count: number of classes.
    """
    hues = [index * _GOLDEN_ANGLE % 1 for index in range(count)]
    return [[round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.7, 0.95)] for hue in hues]
