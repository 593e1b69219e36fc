"""The fixed categories of the clip-art benchmark.

The lists live in code, not on disk, so that class indices never depend on which folder was
generated. Things come first (plain objects, then object-major color combinations), then stuff.
"""

from dataclasses import dataclass

PLAIN_GLYPHS: dict[str, str] = {
    "dog": "\U0001f415",
    "cat": "\U0001f431",
    "horse": "\U0001f40e",
    "cow": "\U0001f404",
    "pig": "\U0001f416",
    "sheep": "\U0001f411",
    "elephant": "\U0001f418",
    "rabbit": "\U0001f407",
    "rooster": "\U0001f413",
    "penguin": "\U0001f427",
    "fish": "\U0001f41f",
    "octopus": "\U0001f419",
    "crab": "\U0001f980",
    "turtle": "\U0001f422",
    "frog": "\U0001f438",
    "butterfly": "\U0001f98b",
    "snail": "\U0001f40c",
    "panda": "\U0001f43c",
    "fox": "\U0001f98a",
    "giraffe": "\U0001f992",
    "ladybug": "\U0001f41e",
    "flamingo": "\U0001f9a9",
    "apple": "\U0001f34e",
    "banana": "\U0001f34c",
    "pineapple": "\U0001f34d",
    "carrot": "\U0001f955",
    "grapes": "\U0001f347",
    "watermelon": "\U0001f349",
    "mushroom": "\U0001f344",
    "pizza": "\U0001f355",
    "hamburger": "\U0001f354",
    "donut": "\U0001f369",
    "cake": "\U0001f382",
    "tree": "\U0001f333",
    "palm tree": "\U0001f334",
    "cactus": "\U0001f335",
    "sunflower": "\U0001f33b",
    "train": "\U0001f682",
    "bicycle": "\U0001f6b2",
    "airplane": "✈",
    "ambulance": "\U0001f691",
    "helicopter": "\U0001f681",
    "rocket": "\U0001f680",
    "tractor": "\U0001f69c",
    "clock": "⏰",
    "key": "\U0001f511",
    "guitar": "\U0001f3b8",
    "camera": "\U0001f4f7",
    "telephone": "☎",
    "snowman": "⛄",
    "robot": "\U0001f916",
    "soccer ball": "⚽",
    "castle": "\U0001f3f0",
    "traffic light": "\U0001f6a6",
}
"""Objects that keep the font's own colors: name -> code point."""

COLORABLE_GLYPHS: dict[str, str] = {
    "car": "\U0001f697",
    "balloon": "\U0001f388",
    "shirt": "\U0001f455",
    "umbrella": "☂",
    "cap": "\U0001f9e2",
    "book": "\U0001f4d5",
    "backpack": "\U0001f392",
    "chair": "\U0001fa91",
}
"""Objects that are always painted in, and named with, one of `COLORS`: name -> code point."""

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.0, 0.85, 0.88),
    "orange": (28.0, 0.92, 0.98),
    "yellow": (54.0, 0.85, 0.98),
    "green": (125.0, 0.65, 0.65),
    "blue": (217.0, 0.78, 0.90),
    "purple": (280.0, 0.60, 0.70),
}
"""Color name -> hue in degrees, saturation and value in [0, 1]."""

STUFF_NAMES: tuple[str, ...] = ("sky", "grass", "sand", "water", "road", "wall", "snow", "floor")

HELD_OUT_NAMES: tuple[str, ...] = (
    "blue car",
    "green balloon",
    "purple shirt",
    "yellow umbrella",
    "red cap",
    "orange book",
    "blue backpack",
    "green chair",
)
"""Combinations that appear only in val_unseen; training shows each object and each color apart."""


@dataclass(frozen=True)
class ThingCategory:
    """One name that a thing can carry.

    Attributes:
        name: the full name, e.g. "dog" or "red car".
        object_name: the name without the color, e.g. "car".
        glyph: the character that draws it.
        color: key of `COLORS`, or None for a plain object.
    """

    name: str
    object_name: str
    glyph: str
    color: str | None


def _list_things() -> tuple[ThingCategory, ...]:
    plain = [ThingCategory(name, name, glyph, None) for name, glyph in PLAIN_GLYPHS.items()]
    colored = [
        ThingCategory(f"{color} {name}", name, glyph, color)
        for name, glyph in COLORABLE_GLYPHS.items()
        for color in COLORS
    ]
    return tuple(plain + colored)


THINGS: tuple[ThingCategory, ...] = _list_things()
THING_NAMES: tuple[str, ...] = tuple(thing.name for thing in THINGS)
THING_BY_NAME: dict[str, ThingCategory] = {thing.name: thing for thing in THINGS}
ALL_NAMES: tuple[str, ...] = THING_NAMES + STUFF_NAMES
CATEGORY_IDS: dict[str, int] = {name: index + 1 for index, name in enumerate(ALL_NAMES)}
"""Name -> id in the annotation files: things 1..T, stuff T+1..T+F."""


def coco_categories(*, with_stuff: bool) -> list[dict]:
    """The `categories` list of a COCO annotation file.

    Args:
        with_stuff: True for the panoptic layout (adds stuff and the `isthing` key).

    Returns:
        One dict per category, in the order of its id.
    """
    if not with_stuff:
        return [
            {"id": CATEGORY_IDS[thing.name], "name": thing.name, "supercategory": thing.object_name}
            for thing in THINGS
        ]
    supercategories = {thing.name: thing.object_name for thing in THINGS}
    return [
        {
            "id": CATEGORY_IDS[name],
            "name": name,
            "supercategory": supercategories.get(name, "stuff"),
            "isthing": int(name in supercategories),
        }
        for name in ALL_NAMES
    ]
