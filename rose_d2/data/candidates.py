"""Lists of class candidates for training the prompts that name the classes to choose from."""

import numpy as np


def draw_candidates(
    present: list[str], vocabulary: list[str], max_distractors: int, rng: np.random.Generator
) -> list[str]:
    """Make a list of class candidates: names in the image plus distractors, in random order.

    Half of the lists hold all names of the image, the others a random part of them, so that the
    model learns to leave out what is not listed.

    Args:
        present: different names of the objects in the image; may be empty.
        vocabulary: all names of the data set.
        max_distractors: most names that are not in the image.
        rng: source of randomness.

    Returns:
        At least one name, all different.
    """
    kept = len(present)
    if kept > 1 and rng.random() < 0.5:
        kept = int(rng.integers(1, kept))
    absent = sorted(set(vocabulary) - set(present))
    fewest = 0 if present else 1
    wanted = int(rng.integers(fewest, max(fewest, max_distractors) + 1))
    names = list(rng.permutation(present)[:kept]) + list(rng.permutation(absent)[:wanted])
    return [str(name) for name in rng.permutation(names)]
