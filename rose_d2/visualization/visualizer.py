"""Masks with their generated names, drawn on the image."""

import colorsys
import math
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.backend_bases import RendererBase
from matplotlib.collections import LineCollection
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.image import AxesImage
from PIL import Image
from torch import Tensor

from rose_d2.visualization.label_placement import place_labels

# A picture is drawn with its longest side between these, whatever the size of the image.
_MIN_DRAWN_SIDE = 640
_MAX_DRAWN_SIDE = 1600
_THING_ALPHA, _STUFF_ALPHA = 0.45, 0.32
_CROWD = 20
_LABEL_LUMINANCE = 0.65
_LONGEST_LABEL = 36


class RoseVisualizer(Visualizer):
    """detectron2's Visualizer for segments whose names are generated instead of looked up.

    Small images are drawn enlarged and very large ones reduced, so that outlines and text have
    a readable size on any of them; `self.factor` is drawn pixels per image pixel.

    Example:
        >>> picture = RoseVisualizer(image).draw_instance_predictions(output["instances"])
        >>> Image.fromarray(picture.get_image()).save("overlay.jpg")
    """

    def __init__(
        self, img_rgb: np.ndarray, metadata: Metadata | None = None, scale: float | None = None
    ) -> None:
        """
        Args:
            img_rgb: uint8 (H, W, 3).
            metadata: only used by the drawing methods inherited from detectron2.
            scale: drawn pixels per image pixel; None chooses it from the size.
        """
        height, width = img_rgb.shape[:2]
        self.image_size = (height, width)
        self.factor = drawing_factor(height, width) if scale is None else float(scale)
        size = (max(1, round(width * self.factor)), max(1, round(height * self.factor)))
        resample = Image.Resampling.BICUBIC if self.factor > 1 else Image.Resampling.LANCZOS
        drawn = np.asarray(Image.fromarray(np.ascontiguousarray(img_rgb)).resize(size, resample))
        super().__init__(drawn, metadata, scale=1.0)

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw instances with their generated names and how sure the model is of the names.

        Args:
            predictions: with pred_masks, pred_category_names and name_scores, as ROSE returns
                them.
            jittering: unused; colours follow the names.

        Returns:
            The picture.
        """
        masks = [mask.cpu().numpy() for mask in predictions.pred_masks]
        scores = predictions.name_scores.tolist()
        return self.draw_segments(masks, list(predictions.pred_category_names), scores)

    def draw_panoptic_seg(
        self,
        panoptic_seg: Tensor | np.ndarray,
        segments_info: Sequence[dict],
        area_threshold: int | None = None,
        alpha: float | None = None,
    ) -> VisImage:
        """Draw a panoptic segmentation; stuff is drawn lighter than things.

        Args:
            panoptic_seg: int (H, W) map of segment ids.
            segments_info: ROSE's list of {id, isthing, category_name, name_score, ...}.
            area_threshold: segments of fewer pixels are left out.
            alpha: opacity of all segments; None takes the usual ones.

        Returns:
            The picture.
        """
        ids = panoptic_seg.cpu().numpy() if isinstance(panoptic_seg, Tensor) else panoptic_seg
        shown = [s for s in segments_info if (ids == s["id"]).sum() >= (area_threshold or 1)]
        return self.draw_segments(
            [ids == segment["id"] for segment in shown],
            [segment["category_name"] for segment in shown],
            [segment.get("name_score") for segment in shown],
            is_thing=[bool(segment["isthing"]) for segment in shown],
            alpha=alpha,
        )

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def draw_referring(self, mask: Tensor | np.ndarray, expression: str) -> VisImage:
        """Draw the answer to a referring expression: the rest of the image is toned down.

        Args:
            mask: bool (H, W).
            expression: what the user asked for; it becomes the label.

        Returns:
            The picture.
        """
        mask = mask.cpu().numpy() if isinstance(mask, Tensor) else mask
        faded = 0.5 * self._create_grayscale_image() + 70
        self.img = np.where(self._drawn(mask)[..., None], self.img, faded).astype(np.uint8)
        return self.draw_segments([mask], [expression], alpha=0.3)

    def draw_segments(
        self,
        masks: Sequence[np.ndarray],
        names: Sequence[str],
        scores: Sequence[float | None] | None = None,
        *,
        is_thing: Sequence[bool] | None = None,
        alpha: float | None = None,
    ) -> VisImage:
        """Draw named masks: colour by name, thin outlines, labels where they hide least.

        Args:
            masks: N arrays, bool (H, W), of the image's size.
            names: N names.
            scores: N scores in [0, 1], None for a segment without; None shows no score at all.
            is_thing: N flags; stuff is drawn lighter and below things. None: all are things.
            alpha: opacity in [0, 1] of all segments; None takes the usual ones.

        Returns:
            The picture. A label that would cover another one is left out.

        Raises:
            ValueError: if the lists differ in length or a mask has another size than the image.
        """
        scores = [None] * len(masks) if scores is None else scores
        is_thing = [True] * len(masks) if is_thing is None else is_thing
        self._check_segments(masks, names, scores, is_thing)
        areas = [int(np.count_nonzero(mask)) for mask in masks]
        # Stuff first, then the largest, so that small objects end on top.
        order = sorted(np.flatnonzero(areas), key=lambda i: (is_thing[i], -areas[i]))
        drawn = [self._drawn(masks[i]) for i in order]
        colours = [colour_of(names[i]) for i in order]
        things = [bool(is_thing[i]) for i in order]
        canvas = self.img.copy()
        for mask, colour, thing in zip(drawn, colours, things, strict=True):
            opacity = alpha if alpha is not None else _THING_ALPHA if thing else _STUFF_ALPHA
            _tint(canvas, mask, colour, opacity)
        self.img = canvas
        _show(self.output, canvas)
        self._draw_outlines(drawn, colours)
        self._draw_labels([label_text(names[i], scores[i]) for i in order], drawn, colours, things)
        return self.output

    def _check_segments(self, masks: Sequence[np.ndarray], *fields: Sequence) -> None:
        lengths = [len(masks), *map(len, fields)]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"Got {lengths} masks, names, scores and thing flags; give one of each a segment."
            )
        for mask in masks:
            if tuple(mask.shape) != self.image_size:
                raise ValueError(
                    f"Got a mask of size {tuple(mask.shape)} for an image of {self.image_size} "
                    "(height, width); bring masks to the image's size first."
                )

    def _drawn(self, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W) at the size of the picture, with its outline smoothed."""
        size = (self.output.width, self.output.height)
        interpolation = cv2.INTER_LINEAR if self.factor > 1 else cv2.INTER_AREA
        return cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=interpolation) >= 128

    def _draw_outlines(
        self, masks: Sequence[np.ndarray], colours: Sequence[tuple[float, float, float]]
    ) -> None:
        lines, inks, widths = [], [], []
        for mask, colour in zip(masks, colours, strict=True):
            contours, _ = cv2.findContours(
                mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1
            )
            closed = [np.vstack([c[:, 0], c[:1, 0]]) + 0.5 for c in contours if len(c) > 2]
            # A dark line below the bright one keeps the outline visible on its own colour.
            dark = 0.25 * np.array(colour)
            for ink, width in (((*dark, 0.6), 1.5), ((*colour, 1.0), 0.8)):
                lines += closed
                inks += [ink] * len(closed)
                widths += [width] * len(closed)
        self.output.ax.add_collection(
            LineCollection(lines, colors=inks, linewidths=widths, zorder=3), autolim=False
        )

    def _draw_labels(
        self,
        texts: list[str],
        masks: list[np.ndarray],
        colours: list[tuple[float, float, float]],
        is_thing: list[bool],
    ) -> None:
        # detectron2's size suits crowds; with few labels larger ones survive in a thumbnail.
        crowded = len(texts) > _CROWD
        side = math.sqrt(self.output.height * self.output.width)
        font_size = self._default_font_size if crowded else max(10.0, side / 58)
        labels = [self._fitted(text, font_size) for text in texts]
        corners = place_labels(masks, [size for _, size in labels], is_thing)
        for (text, (width, _)), corner, colour in zip(labels, corners, colours, strict=True):
            if corner is None:
                continue
            centre_top = (corner[0] + width / 2, corner[1] + 2)
            # matplotlib would read text between dollars as a formula.
            text = text.replace("$", r"\$")
            self.draw_text(text, centre_top, color=lightened(colour), font_size=font_size)

    def _text_size(self, text: str, font_size: float) -> tuple[float, float]:
        """Width and height in pixels of a label with its margin, as `draw_text` draws it."""
        font = FontProperties(family="sans-serif", size=font_size)
        width, height, _ = self.output.canvas.get_renderer().get_text_width_height_descent(
            text, font, ismath=False
        )
        return width + 4.0, max(height, font_size * self.output.dpi / 72) + 4.0

    def _fitted(self, text: str, font_size: float) -> tuple[str, tuple[float, float]]:
        """A label, shortened to the picture's width, and its `_text_size`."""
        size = self._text_size(text, font_size)
        while len(text) > 2 and size[0] > self.output.width:
            text = text[:-2] + "…"
            size = self._text_size(text, font_size)
        return text, size


class _Pixels(AxesImage):
    """An image that fills its figure pixel by pixel, and is not resampled to itself."""

    def make_image(
        self, renderer: RendererBase, magnification: float = 1.0, unsampled: bool = False
    ) -> tuple[np.ndarray, float, float, object]:
        """See matplotlib: the pixels from the bottom up, and where they go."""
        rgb = np.asarray(self.get_array())
        if (getattr(renderer, "height", 0), getattr(renderer, "width", 0)) != rgb.shape[:2]:
            return super().make_image(renderer, magnification, unsampled)  # of another resolution
        return cv2.cvtColor(rgb[::-1], cv2.COLOR_RGB2RGBA), 0.0, 0.0, None


def _show(picture: VisImage, pixels: np.ndarray) -> None:
    """Put an image (H, W, 3) in the place of the picture's own."""
    for image in picture.ax.get_images():
        image.remove()
    extent = (0, picture.width, picture.height, 0)
    shown = _Pixels(picture.ax, interpolation="nearest", extent=extent)
    shown.set_data(pixels)
    picture.ax.add_image(shown)


def drawing_factor(height: int, width: int) -> float:
    """Drawn pixels per image pixel: whole numbers from 2 up for small images, below 1 for huge."""
    longest = max(height, width)
    if longest < _MIN_DRAWN_SIDE:
        return float(max(2, math.ceil(_MIN_DRAWN_SIDE / longest)))
    return min(1.0, _MAX_DRAWN_SIDE / longest)


def _tint(
    canvas: np.ndarray, mask: np.ndarray, colour: tuple[float, float, float], alpha: float
) -> None:
    """Blend a colour into the canvas (H, W, 3) where the mask (H, W) is set, in place."""
    inside = mask.astype(np.uint8)
    left, top, width, height = cv2.boundingRect(inside)
    box = slice(top, top + height), slice(left, left + width)
    solid = np.full_like(canvas[box], np.rint(255 * np.array(colour)))
    blended = cv2.addWeighted(canvas[box], 1 - alpha, solid, alpha, 0)
    canvas[box] = cv2.copyTo(blended, inside[box], canvas[box].copy())


def colour_of(name: str) -> tuple[float, float, float]:
    """The colour of a category: the same for a name in every picture and every run.

    Args:
        name: a generated name; upper case and spacing make no difference.

    Returns:
        (red, green, blue) in [0, 1].
    """
    key = " ".join(name.casefold().split())
    return _PALETTE[zlib.crc32(key.encode("utf-8")) % len(_PALETTE)]


def _build_palette() -> list[tuple[float, float, float]]:
    """detectron2's colours without greys and near-blacks, which vanish on a photograph."""
    distinct = dict.fromkeys(tuple(map(float, row)) for row in colormap(rgb=True, maximum=1))
    hsv = {colour: colorsys.rgb_to_hsv(*colour) for colour in distinct}
    return [colour for colour, (_, s, v) in hsv.items() if s >= 0.35 and v >= 0.6]


_PALETTE = _build_palette()


def lightened(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """Mix a colour with white until it is readable on the dark background of a label."""
    red, green, blue = colour
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    white = max(0.0, (_LABEL_LUMINANCE - luminance) / (1 - luminance))
    return tuple(white + (1 - white) * channel for channel in colour)


def label_text(name: str, score: float | None) -> str:
    """A name, shortened if it is very long, with its score in percent if it has one."""
    text = printable(name)
    if len(text) > _LONGEST_LABEL:
        text = text[: _LONGEST_LABEL - 1] + "…"
    return text if score is None else f"{text} {100 * score:.0f}%"


def printable(text: str) -> str:
    """One line of characters the font has; a generated name may hold anything."""
    font = get_font(findfont(FontProperties(family=["sans-serif"])))
    known = (c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in text)
    return "".join(" " if c.isspace() else k for c, k in zip(text, known, strict=True)).strip()
