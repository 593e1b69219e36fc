"""Which segments to refine when no ground truth says which are bad."""

from collections.abc import Sequence

import cv2
import numpy as np

from rose_d2.structures.segment import Segment

# Details below this share of a mask's radius (that of a circle of its area) count as rough.
_DETAIL = 0.1


def choose_segments(segments: Sequence[Segment], policy: str, count: int) -> list[int]:
    """Choose what to refine.

    Args:
        segments: of one image.
        policy: one of `refine_options.POLICIES`. "lowest-score": those the model was least sure
            of; "uncertain-boundary": those with the roughest outline, see `outline_roughness`.
        count: at most so many, except for "all".

    Returns:
        Positions, in the order in which they are refined.
    """
    if policy == "all":
        return list(range(len(segments)))
    if policy == "lowest-score":
        worst_first = sorted(range(len(segments)), key=lambda i: segments[i].score)
    else:
        roughness = [outline_roughness(segment.mask) for segment in segments]
        worst_first = sorted(range(len(segments)), key=lambda i: -roughness[i])
    return worst_first[:count]


def outline_roughness(mask: np.ndarray) -> float:
    """Measure how much of a mask is holes, specks and fringes.

    A file of masks has no logits, so the outline itself has to tell where its maker was unsure:
    the mask is smoothed over a tenth of its radius to all sides, and the pixels that change are
    counted. Thin objects count as rough too.

    Args:
        mask: bool (H, W) with at least one pixel.

    Returns:
        Changed pixels over the mask's pixels, at most 1.
    """
    area = np.count_nonzero(mask)
    radius = max(1, round(_DETAIL * np.sqrt(area / np.pi)))
    side = 2 * radius + 1
    smooth = cv2.blur(mask.astype(np.float32), (side, side), borderType=cv2.BORDER_REPLICATE) >= 0.5
    return min(1.0, np.count_nonzero(smooth != mask) / area)
