"""Pictures of a page: prediction and ground truth drawn alike, as JPEG inside the HTML."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from rose_d2.evaluation.image_segments import ImageSegments
from rose_d2.visualization import RoseVisualizer

# Longest side and JPEG quality, from the finest down; the last is used whatever its size.
_SIZES = ((640, 85), (640, 70), (520, 65), (400, 60), (300, 55))


def draw_segments(image: np.ndarray, segments: ImageSegments, sentence: str | None) -> np.ndarray:
    """Draw segments over their image.

    Args:
        image: uint8 (H, W, 3), RGB.
        segments: of the image's size.
        sentence: of a referring sample: the mask is its answer. None draws names.

    Returns:
        uint8 (H', W', 3).

    Raises:
        ValueError: the segments have another size than the image.
    """
    masks = [mask.numpy() for mask in segments.masks]
    visualizer = RoseVisualizer(image)
    if sentence is not None:
        mask = masks[0] if masks else np.zeros(image.shape[:2], dtype=bool)
        if not mask.any():  # nothing stands out of a picture that is toned down as a whole
            return RoseVisualizer(image).draw_segments([], []).get_image()
        return visualizer.draw_referring(mask, sentence, segments.scores[0]).get_image()
    picture = visualizer.draw_segments(
        masks, segments.names, segments.scores, is_thing=segments.is_thing
    )
    return picture.get_image()


def jpeg_data_uri(picture: np.ndarray, max_bytes: int) -> str:
    """Encode a picture for the `src` of an image.

    Args:
        picture: uint8 (H, W, 3), RGB.
        max_bytes: wanted length of the JPEG; size and quality give way, down to 300 pixels.
    """
    for side, quality in _SIZES:
        image = Image.fromarray(picture)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= max_bytes:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
