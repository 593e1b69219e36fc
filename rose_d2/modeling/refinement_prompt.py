"""How the model is shown the mask it is to repair: the three prompt forms of Table 6."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rose_d2.layers.mask_ops import masks_to_boxes

PROMPT_FORMS = ("concat", "mask_overlay", "mask_box_overlay")


@dataclass(frozen=True)
class RefinementPrompt:
    """Brings a prior mask into the language model's input.

    "concat" is the paper's choice (section 3.4): the mask is the fourth input channel. Its two
    alternatives follow FGVP (arXiv 2306.04356): "mask_overlay" blends a colour over the masked
    pixels, "mask_box_overlay" draws the frame of the mask's box besides; the fourth channel is
    then zero, so the prompt is all the model sees of the mask. Colour, opacity and line width are
    ours. SAM's view is never drawn upon.

    Attributes:
        form: MODEL.REFINEMENT.PROMPT, one of `PROMPT_FORMS`.
        colour: RGB in 0..255 of overlay and frame.
        alpha: opacity of the overlay, 0 to 1; the frame is opaque.
        line_width: of the frame, in pixels of the view.

    Raises:
        ValueError: if `form` is unknown.
    """

    form: str = "concat"
    colour: tuple[int, int, int] = (255, 0, 0)
    alpha: float = 0.5
    line_width: int = 2

    def __post_init__(self) -> None:
        if self.form not in PROMPT_FORMS:
            raise ValueError(
                f"MODEL.REFINEMENT.PROMPT is {self.form!r}; choose one of "
                f"{', '.join(PROMPT_FORMS)}."
            )

    def __call__(self, images: Tensor, prior_masks: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            images: (B, 3, I, I), RGB in 0..255, uint8 or float.
            prior_masks: float (B, 1, I, I), 0 or 1; all 0 where an image has no prior.

        Returns:
            The pixels (B, 3, I, I), RGB in 0..255 (float with an overlay), and the fourth channel
            (B, 1, I, I).
        """
        if self.form == "concat":
            return images, prior_masks
        covered = prior_masks > 0.5  # (B, 1, I, I)
        colour = torch.tensor(self.colour, dtype=torch.float32, device=images.device).view(3, 1, 1)
        pixels = images.float()
        pixels = torch.where(covered, (1 - self.alpha) * pixels + self.alpha * colour, pixels)
        if self.form == "mask_box_overlay":
            frames = box_frames(covered[:, 0], self.line_width)
            pixels = torch.where(frames[:, None], colour, pixels)
        return pixels, torch.zeros_like(prior_masks)


def box_frames(masks: Tensor, line_width: int) -> Tensor:
    """The frames around the tight boxes of masks.

    A frame lies just outside its box. Where the box comes nearer to the border of the view than
    the line is wide, the line moves inwards, so that all four sides are seen in full width.

    Args:
        masks: bool (B, I, I).
        line_width: in pixels.

    Returns:
        bool (B, I, I); no frame where the mask is empty.
    """
    frames = torch.zeros_like(masks)
    height, width = masks.shape[1:]
    boxes = masks_to_boxes(masks).tensor.long().tolist()
    for frame, (x1, y1, x2, y2) in zip(frames, boxes, strict=True):
        if x1 == x2:
            continue
        left, top = max(0, x1 - line_width), max(0, y1 - line_width)
        right, bottom = min(width, x2 + line_width), min(height, y2 + line_width)
        frame[top:bottom, left:right] = True
        rows = slice(top + line_width, bottom - line_width)
        columns = slice(left + line_width, right - line_width)
        frame[rows, columns] = False
    return frames
