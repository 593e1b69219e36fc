"""A named region of an image, as results leave the model, and what is asked about one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import Instances

NormalisedBox = tuple[int, int, int, int]
SITUATIONS = ("mask", "category", "missed")
# Boxes in instructions are written as integers from 0 to this, whatever the size of the image.
BOX_SCALE = 999


class _MaskInBits:
    """The mask of a `Segment`, kept as one bit a pixel of its box and drawn when it is read."""

    def __get__(self, segment: Any, owner: type | None = None) -> np.ndarray | _MaskInBits:
        if segment is None:
            return self
        shape, (rows, columns), bits = vars(segment)["mask"]
        mask = np.zeros(shape, dtype=bool)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        flat = np.unpackbits(bits, count=height * width)
        mask[rows, columns] = flat.reshape(height, width)
        # What is written here would be lost.
        mask.flags.writeable = False
        return mask

    def __set__(self, segment: Any, mask: np.ndarray) -> None:
        window = _extent(np.any(mask, axis=1)), _extent(np.any(mask, axis=0))
        vars(segment)["mask"] = mask.shape, window, np.packbits(mask[window])


def _extent(occupied: np.ndarray) -> slice:
    """From the first to the last True of bool (X,)."""
    places = np.flatnonzero(occupied)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


@dataclass(frozen=True)
class Segment:
    """A mask with the name the model generated for it.

    Attributes:
        mask: bool (H, W) at the size of the image, with at least one pixel; read-only, and drawn
            anew wherever it is read, since a hundred of a photograph would fill a gigabyte.
        category_name: the generated name, or one of the user's candidates.
        score: objectness in [0, 1].
        name_score: probability of the name in [0, 1], the geometric mean over its tokens; None
            where the name was not generated.
        is_thing: True for a countable object, False for stuff such as sky or grass.
    """

    mask: np.ndarray
    category_name: str
    score: float
    name_score: float | None = None
    is_thing: bool = True


# Behind the class, so that the field has no default.
Segment.mask = _MaskInBits()  # type: ignore[assignment]


def found_instances(output: Mapping[str, Any]) -> Instances:
    """All that an output holds, whatever its name; "instances" may be a part of it.

    Args:
        output: one item of the model's list of outputs, or one that has "instances" alone.
    """
    return output["open_instances"] if "open_instances" in output else output["instances"]


@dataclass(frozen=True)
class RefinementRequest:
    """One turn of conversation-based segmentation refinement (paper section 3.4).

    The mask that is to be repaired is not part of it: it reaches the model as `prior_mask`.

    Attributes:
        situation: "mask" (right name, imperfect mask), "category" (wrong name, imperfect mask) or
            "missed" (not found at all, so there is no prior mask).
        box: (x1, y1, x2, y2), integers 0-999 over the image's width and height: the box of the
            prior mask, for "missed" of the region itself. See `normalised_box`.
        wrong_category: the name to be corrected; for "category" only.
        expression: what the mask was asked for with, if it answered a referring expression; for
            "mask" only.

    Raises:
        ValueError: unknown situation, a box that is not one, a name where the situation has none
            (and the other way round), or an expression that is empty or not of a mask.
    """

    situation: str
    box: NormalisedBox
    wrong_category: str | None = None
    expression: str | None = None

    def __post_init__(self) -> None:
        if self.situation not in SITUATIONS:
            raise ValueError(
                f"Unknown refinement situation {self.situation!r}; choose one of {SITUATIONS}."
            )
        check_box(self.box)
        has_name = self.wrong_category is not None and bool(self.wrong_category.strip())
        if self.situation == "category" and not has_name:
            raise ValueError(
                f"Situation 'category' needs the name to be corrected, got {self.wrong_category!r};"
                " pass the wrong name, or use situation 'mask' if the name is right."
            )
        if self.situation != "category" and self.wrong_category is not None:
            raise ValueError(
                f"Situation {self.situation!r} takes no name, got {self.wrong_category!r}; use "
                "situation 'category' to correct a name."
            )
        if self.expression is not None and (
            self.situation != "mask" or not self.expression.strip()
        ):
            raise ValueError(
                f"Situation {self.situation!r} got the referring expression {self.expression!r}; "
                "give one with words, in situation 'mask', or None."
            )


def check_box(box: NormalisedBox) -> None:
    """Refuse what is not a box of four integers.

    Raises:
        ValueError: not four integers from 0 to 999 with x1 <= x2 and y1 <= y2.
    """
    is_valid = (
        isinstance(box, tuple)
        and len(box) == 4
        and all(isinstance(edge, int) and 0 <= edge <= BOX_SCALE for edge in box)
    )
    if not is_valid or box[0] > box[2] or box[1] > box[3]:
        raise ValueError(
            f"A box in words is (x1, y1, x2, y2), integers from 0 to {BOX_SCALE} with x1 <= x2 and "
            f"y1 <= y2, got {box!r}; `normalised_box` makes one of a mask or of pixels."
        )
