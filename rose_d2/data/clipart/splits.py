"""Sizes, seeds and splits of the clip-art benchmark, and its scenes one by one."""

from dataclasses import dataclass

import numpy as np

from rose_d2.data.clipart.scene import Scene, compose_scene

FORMAT_VERSION = 1
FIRST_IMAGE_IDS = {"train": 1, "val": 800_001, "val_unseen": 900_001}
MAX_SCENES = {"train": 800_000, "val": 100_000, "val_unseen": 99_999}
LICENSE_TEXT = """\
The images in this folder are composed from emoji of the OpenMoji project (https://openmoji.org),
the open-source emoji and icon project. License: CC BY-SA 4.0,
https://creativecommons.org/licenses/by-sa/4.0/

Changes: the emoji were scaled, rotated, mirrored, recolored, overlapped and placed on generated
backgrounds. The images are shared under the same license.
"""


@dataclass(frozen=True)
class BenchmarkSettings:
    """What determines the content of the benchmark.

    Attributes:
        seed: any integer >= 0.
        num_scenes: split -> number of scenes, for "train", "val" and "val_unseen".
    """

    seed: int
    num_scenes: dict[str, int]

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or greater.")
        if set(self.num_scenes) != set(MAX_SCENES):
            raise ValueError(
                f"num_scenes names the splits {sorted(self.num_scenes)}; give a number for each of "
                f"{', '.join(MAX_SCENES)} (0 writes an empty split)."
            )
        for split, number in self.num_scenes.items():
            if not 0 <= number <= MAX_SCENES[split]:
                raise ValueError(
                    f"{number} scenes asked for split {split}; choose 0 to {MAX_SCENES[split]}."
                )

    def as_meta(self) -> dict:
        """Content of meta.json."""
        return {
            "format_version": FORMAT_VERSION,
            "seed": self.seed,
            "num_scenes": {split: self.num_scenes[split] for split in FIRST_IMAGE_IDS},
        }


def compose_split_scene(seed: int, split: str, number: int) -> tuple[Scene, np.random.Generator]:
    """Composes one scene of a split.

    Args:
        seed: the benchmark's seed.
        split: "train", "val" or "val_unseen".
        number: running number from 0.

    Returns:
        The scene and its generator, from which the expressions are drawn next.
    """
    rng = np.random.default_rng([seed, list(FIRST_IMAGE_IDS).index(split), number])
    return compose_scene(rng, unseen=split == "val_unseen"), rng
