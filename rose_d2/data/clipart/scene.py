"""Composition of one clip-art scene: bands of stuff, then things pasted one over another."""

from dataclasses import dataclass

import numpy as np

from rose_d2.data.clipart.backgrounds import compose_background
from rose_d2.data.clipart.categories import (
    COLORABLE_GLYPHS,
    COLORS,
    HELD_OUT_NAMES,
    PLAIN_GLYPHS,
    THING_BY_NAME,
)
from rose_d2.data.clipart.glyphs import ink_scale, place_glyph, render_glyph

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


def _draw_name(rng: np.random.Generator) -> str:
    """A random name that is allowed in training."""
    if rng.random() >= COLORABLE_SHARE:
        return str(rng.choice(list(PLAIN_GLYPHS)))
    while True:
        name = f"{rng.choice(list(COLORS))} {rng.choice(list(COLORABLE_GLYPHS))}"
        if name not in HELD_OUT_NAMES:
            return name


def draw_names(rng: np.random.Generator, *, unseen: bool) -> list[str]:
    """Names of the things of one scene, in no particular order.

    Args:
        rng: the scene's generator.
        unseen: whether exactly one kind of thing is a held-out combination.

    Returns:
        2 to 8 names, sometimes with one name two or three times.
    """
    counts = list(OBJECT_COUNT_WEIGHTS)
    count = int(rng.choice(counts, p=list(OBJECT_COUNT_WEIGHTS.values())))
    names: list[str] = [str(rng.choice(HELD_OUT_NAMES))] if unseen else []
    if rng.random() < REPEATED_NAME_SHARE:
        repeated = names[0] if unseen and rng.random() < 0.5 else _draw_name(rng)
        copies = int(rng.integers(2, 4)) - names.count(repeated)
        names += [repeated] * copies
    while len(names) < count:
        name = _draw_name(rng)
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


def compose_scene(rng: np.random.Generator, *, unseen: bool = False) -> Scene:
    """Composes one scene; the same generator state gives the same scene.

    Args:
        rng: the scene's generator.
        unseen: whether one of the things must be a held-out color-object combination. Without
            it, no held-out combination ever appears.

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
            for name in draw_names(rng, unseen=unseen)
        ]
        # Larger things tend to lie behind smaller ones, but not always.
        sized.sort(key=lambda item: -item[1] * float(np.exp(rng.normal(0, 0.35))))
        for name, scale in sized:
            _place(rng, canvas, name, scale)
        held_out_placed = any(name in HELD_OUT_NAMES for name in canvas.names)
        if len(canvas.names) >= 2 and held_out_placed == unseen:
            image = np.clip(canvas.image * rng.uniform(0.88, 1.1), 0, 255).round()
            return Scene(image.astype(np.uint8), stuff, canvas.objects())
