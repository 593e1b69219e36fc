"""One named region of one image, the form in which results leave the model."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """A mask with the name the model generated for it.

    Attributes:
        mask: bool (H, W) at the size of the image, with at least one pixel.
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
