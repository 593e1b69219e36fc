"""Lists of class candidates: drawn for training, or all classes of a dataset for testing."""

from __future__ import annotations

import numpy as np
from detectron2.data import Metadata

# Values of TEST.CANDIDATES.
CANDIDATE_MODES = ("", "prompt", "decode", "both")


def check_candidate_mode(mode: str) -> str:
    """Return the mode.

    Raises:
        ValueError: it is not one of `CANDIDATE_MODES`.
    """
    if mode not in CANDIDATE_MODES:
        raise ValueError(
            f"TEST.CANDIDATES is {mode!r}; use 'prompt' to list a dataset's classes in the "
            "instruction, 'decode' to let names be spelled only along them, 'both', or '' for a "
            "free vocabulary."
        )
    return mode


def dataset_candidates(metadata: Metadata, task: str) -> list[str]:
    """All class names of a dataset, as class candidates.

    Args:
        metadata: with `thing_classes` for the instance task, else with all classes in
            `stuff_classes`.
        task: "semantic", "instance" or "panoptic".

    Returns:
        The names in the order of the classes, of "a, b" the first; equal ones once.

    Raises:
        ValueError: the dataset has no classes.
    """
    key = "thing_classes" if task == "instance" else "stuff_classes"
    names = [name.split(",")[0].strip() for name in metadata.get(key, None) or ()]
    if not names:
        raise ValueError(
            f"Dataset {metadata.get('name', '?')!r} has no {key} in its metadata, which "
            "TEST.CANDIDATES offers as class candidates; set them where the dataset is "
            "registered, or leave TEST.CANDIDATES empty."
        )
    return list(dict.fromkeys(names))


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
