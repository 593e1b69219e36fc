"""The pictures all miniature datasets are made of."""

import numpy as np

from rose_d2.data.clipart.scene import Scene, compose_scene

_SEED = 3


def miniature_scene(image_id: int) -> Scene:
    """The clip-art scene of an image id: always the same one.

    Args:
        image_id: not negative; datasets that use one id show one picture.
    """
    return compose_scene(np.random.default_rng([_SEED, image_id]), unseen=False)
