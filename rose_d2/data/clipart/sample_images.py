"""A few clip-art pictures without annotations, for demonstrations."""

from pathlib import Path

import numpy as np
from PIL import Image

from rose_d2.data.clipart.scene import Scene, compose_scene

# Keeps the pictures apart from every split of the benchmark with the same seed.
SAMPLE_STREAM = 99
MIN_OBJECTS = 4
JPEG_QUALITY = 92
COMMENT = (
    "Composed from OpenMoji emoji (https://openmoji.org), CC BY-SA 4.0; changed: scaled, rotated, "
    "mirrored, recolored, placed on generated backgrounds."
)


def compose_sample(seed: int, number: int) -> Scene:
    """A scene with at least `MIN_OBJECTS` things that no split contains."""
    rng = np.random.default_rng([seed, SAMPLE_STREAM, number])
    while True:
        scene = compose_scene(rng)
        if len(scene.objects) >= MIN_OBJECTS:
            return scene


def write_sample_images(folder: Path, num_images: int, seed: int) -> list[Path]:
    """Writes pictures named clipart_000.jpg and so on; the license goes into their comment.

    Args:
        folder: made when missing; other files in it are left alone.
        num_images: how many, at least 1.
        seed: any integer >= 0.

    Returns:
        Paths of the pictures.

    Raises:
        ValueError: if the number or the seed is out of range.
    """
    if num_images < 1 or seed < 0:
        raise ValueError(
            f"Got {num_images} images and seed {seed}; at least one image and a seed of 0 or more "
            "are needed."
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(num_images):
        path = folder / f"clipart_{number:03d}.jpg"
        picture = Image.fromarray(compose_sample(seed, number).image)
        picture.save(path, quality=JPEG_QUALITY, comment=COMMENT.encode("ascii"))
        paths.append(path)
    return paths
