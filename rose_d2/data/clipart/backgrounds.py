"""Textures of the stuff classes, and scenes cut into horizontal bands of them."""

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image

from rose_d2.data.clipart.categories import STUFF_NAMES

TEXTURE_SIZE = 384
TEXTURE_VARIANTS = 4
# Textures are drawn once per process from this constant, so that workers agree; what differs
# between scenes (variant, crop, mirror, tint) comes from the scene's own generator.
TEXTURE_SEED = 20240117
# Share of scenes whose topmost band is sky, wall, or any other class.
TOP_BAND_WEIGHTS = {"sky": 0.34, "wall": 0.18}
BAND_COUNT_WEIGHTS = (0.15, 0.5, 0.35)


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Smooth noise, float32 (TEXTURE_SIZE, TEXTURE_SIZE) in [-1, 1], from a coarse random grid."""
    grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    image = Image.fromarray(grid).resize((TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), -1, 1)


def _coordinates() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE].astype(np.float32)
    return rows, columns


def _shade(color: tuple[int, int, int], amount: np.ndarray) -> np.ndarray:
    """A color plus a grey offset per pixel, float32 (T, T, 3)."""
    return np.asarray(color, np.float32) + amount[..., None]


def _blend(below: np.ndarray, color: tuple[int, int, int], weight: np.ndarray) -> np.ndarray:
    weight = np.clip(weight, 0, 1)[..., None]
    return below * (1 - weight) + np.asarray(color, np.float32) * weight


def _sky(rng: np.random.Generator) -> np.ndarray:
    rows, _ = _coordinates()
    blue = _blend(_shade((105, 175, 240), 0 * rows), (190, 225, 250), rows / TEXTURE_SIZE)
    clouds = _noise(rng, 9, 5) + 0.5 * _noise(rng, 24, 12)
    return _blend(blue, (250, 252, 255), 2.5 * (clouds - 0.35))


def _grass(rng: np.random.Generator) -> np.ndarray:
    patches = 14 * _noise(rng, 10, 10)
    blades = 30 * _noise(rng, TEXTURE_SIZE // 10, TEXTURE_SIZE // 2)
    return _shade((88, 160, 62), patches + blades)


def _sand(rng: np.random.Generator) -> np.ndarray:
    rows, _ = _coordinates()
    ripples = 7 * np.sin(rows * 0.22 + 5 * _noise(rng, 5, 5))
    grains = 12 * rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE)).astype(np.float32)
    return _shade((226, 201, 143), ripples + grains)


def _water(rng: np.random.Generator) -> np.ndarray:
    rows, _ = _coordinates()
    waves = np.sin(rows * 0.42 + 4 * _noise(rng, 10, 8))
    deep = _shade((28, 98, 170), 12 * _noise(rng, 8, 4))
    return _blend(deep, (120, 195, 225), 1.6 * (waves - 0.55))


def _road(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _coordinates()
    grains = 7 * rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE)).astype(np.float32)
    asphalt = _shade((92, 92, 98), grains + 6 * _noise(rng, 6, 6))
    spacing, shift = 74, rng.integers(0, 74)
    dashes = (np.mod(rows + shift, spacing) < 5) & (np.mod(columns + shift, 56) < 34)
    return _blend(asphalt, (235, 232, 215), 0.9 * dashes)


def _wall(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _coordinates()
    course = (rows // 14).astype(int)
    shifted = columns + 15 * (course % 2)
    brick = (shifted // 30).astype(int)
    tones = rng.uniform(-16, 16, (64, 64)).astype(np.float32)
    bricks = _shade((172, 84, 66), tones[course % 64, brick % 64] + 6 * _noise(rng, 96, 96))
    mortar = (np.mod(rows, 14) < 2) | (np.mod(shifted, 30) < 2)
    return _blend(bricks, (208, 200, 190), 0.95 * mortar)


def _snow(rng: np.random.Generator) -> np.ndarray:
    drifts = np.clip(_noise(rng, 14, 4), 0, 1)
    snow = _blend(_shade((243, 246, 250), 0 * drifts), (205, 218, 235), drifts)
    flecks = rng.random((TEXTURE_SIZE, TEXTURE_SIZE)) < 0.006
    return _blend(snow, (170, 182, 205), flecks.astype(np.float32))


def _floor(rng: np.random.Generator) -> np.ndarray:
    rows, columns = _coordinates()
    plank = (rows // 24).astype(int)
    shifted = columns + rng.integers(0, 120, 64)[plank % 64]
    tones = rng.uniform(-14, 14, (64, 64)).astype(np.float32)
    grain = 8 * _noise(rng, TEXTURE_SIZE // 2, TEXTURE_SIZE // 24)
    wood = _shade((158, 108, 62), tones[plank % 64, (shifted // 120).astype(int) % 64] + grain)
    seams = (np.mod(rows, 24) < 2) | (np.mod(shifted, 120) < 2)
    return _blend(wood, (92, 58, 30), 0.9 * seams)


TEXTURES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "sky": _sky,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "road": _road,
    "wall": _wall,
    "snow": _snow,
    "floor": _floor,
}


@functools.cache
def texture(name: str, variant: int) -> np.ndarray:
    """One drawing of a stuff class.

    Args:
        name: a name of `categories.STUFF_NAMES`.
        variant: 0 to `TEXTURE_VARIANTS` - 1.

    Returns:
        uint8 (TEXTURE_SIZE, TEXTURE_SIZE, 3) RGB. Shared: do not modify.
    """
    rng = np.random.default_rng([TEXTURE_SEED, STUFF_NAMES.index(name), variant])
    return np.clip(TEXTURES[name](rng), 0, 255).round().astype(np.uint8)


def _choose_bands(rng: np.random.Generator) -> list[str]:
    count = 1 + int(rng.choice(len(BAND_COUNT_WEIGHTS), p=BAND_COUNT_WEIGHTS))
    others = [name for name in STUFF_NAMES if name not in TOP_BAND_WEIGHTS]
    rest = 1 - sum(TOP_BAND_WEIGHTS.values())
    weights = [*TOP_BAND_WEIGHTS.values(), *[rest / len(others)] * len(others)]
    top = str(rng.choice([*TOP_BAND_WEIGHTS, *others], p=weights))
    # Sky above only: below another band it would be hard to tell from water even for people.
    below = [name for name in STUFF_NAMES if name not in (top, "sky")]
    return [top, *(str(name) for name in rng.permutation(below)[: count - 1])]


def _boundary(rng: np.random.Generator, width: int, level: float) -> np.ndarray:
    """Row of a slightly wavy, slightly tilted border at every column, float (width,)."""
    columns = np.arange(width) / width
    line = level + rng.uniform(-10, 10) * (columns - 0.5)
    for waves in (1.3, 3.1):
        amplitude, phase = rng.uniform(0.5, 5.5), rng.uniform(0, 2 * np.pi)
        line = line + amplitude * np.sin(2 * np.pi * waves * columns + phase)
    return line


def _tinted_crop(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    picture = texture(name, int(rng.integers(TEXTURE_VARIANTS)))
    top = int(rng.integers(TEXTURE_SIZE - height + 1))
    left = int(rng.integers(TEXTURE_SIZE - width + 1))
    crop = picture[top : top + height, left : left + width]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    tint = rng.uniform(0.87, 1.08) * rng.uniform(0.95, 1.05, 3)
    ramp = np.linspace(1, rng.uniform(0.88, 1.12), height)[:, None, None]
    return crop * (tint * ramp).astype(np.float32)


def compose_background(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fills a canvas with one to three bands, each class at most once.

    Args:
        rng: the scene's generator.
        height: rows, at most `TEXTURE_SIZE`.
        width: columns, at most `TEXTURE_SIZE`.

    Returns:
        float32 (H, W, 3) RGB in about [0, 280] and int (H, W) index into `STUFF_NAMES`.

    Raises:
        ValueError: if the canvas is larger than the textures.
    """
    if max(height, width) > TEXTURE_SIZE:
        raise ValueError(f"Scene of {height}x{width} pixels; at most {TEXTURE_SIZE} a side.")
    names = _choose_bands(rng)
    image = _tinted_crop(rng, names[0], height, width)
    stuff = np.full((height, width), STUFF_NAMES.index(names[0]))
    rows = np.arange(height)[:, None]
    shares = rng.uniform(0.75, 1.25, len(names))
    levels = np.cumsum(shares / shares.sum())[:-1] * height
    for name, level in zip(names[1:], levels, strict=True):
        below = rows >= _boundary(rng, width, level)[None]
        image = np.where(below[..., None], _tinted_crop(rng, name, height, width), image)
        stuff[below] = STUFF_NAMES.index(name)
    return image, stuff
