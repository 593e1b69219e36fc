"""A page of saved predictions: numbers on top, then the best, the worst and random images."""

from __future__ import annotations

import base64
import io
import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from rose_d2.data.image_io import read_image
from rose_d2.prompts.tasks import TASKS
from rose_d2.reports.image_scores import (
    ImageScore,
    ImageSegments,
    SavedPredictions,
    ScoredImage,
    Selection,
    WrongName,
    missing_images,
)
from rose_d2.visualization.visualizer import RoseVisualizer

MAX_BYTES = 15_000_000
# What pictures may take of it, before base64 adds a third.
_PICTURE_BYTES = 0.66 * MAX_BYTES
_BINS = 20
# Longest side and JPEG quality, from the finest down; the last is used whatever its size.
_SIZES = ((640, 85), (640, 70), (520, 65), (400, 60), (300, 55))


def build_page(
    saved: SavedPredictions, scored: Sequence[ScoredImage], selection: Selection, seed: int
) -> str:
    """Make the page.

    Args:
        saved: the predictions.
        scored: all of them with their scores, at least one.
        selection: those to show.
        seed: of the random ones, to be told.

    Returns:
        One self-contained HTML document that loads nothing.

    Raises:
        FileNotFoundError: image files are missing.
        ValueError: the page would be larger than 15 MB.
    """
    missing = missing_images(saved.samples, selection)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the images to show are missing, the first is {missing[0]}; put "
            "the images where the dataset expects them (python tools/check_data.py)."
        )
    shown = [*selection.best, *selection.worst, *selection.random]
    budget = int(_PICTURE_BYTES / (2 * len(shown)))
    # An image is drawn once, although it may be among the random ones too.
    by_key = {image.key: image for image in shown}
    cards = {key: make_card(saved, image, budget) for key, image in by_key.items()}
    page = html_template("page.html.j2").render(
        dataset=saved.dataset,
        task=saved.task,
        score_threshold=saved.score_threshold,
        sections=_sections(saved.task, selection, seed, cards),
        fingerprint=json.dumps(dict(saved.store.fingerprint), indent=1, ensure_ascii=False),
        **_overview([image.score for image in scored], saved),
    )
    size = len(page.encode("utf-8"))
    if size > MAX_BYTES:
        raise ValueError(
            f"The page would be {size / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}; show fewer "
            "images (--num)."
        )
    return page


def make_card(saved: SavedPredictions, image: ScoredImage, picture_bytes: int) -> Card:
    """Draw one image.

    Args:
        saved: the predictions.
        image: which one.
        picture_bytes: wanted size of each of its two pictures.
    """
    sample = saved.samples[image.key]
    predicted, true = saved.segments(image.key)
    sentence = sample["sentence"] if TASKS[saved.task].takes_expression else None
    pixels = read_image(sample["file_name"])
    pictures = [
        jpeg_data_uri(draw_segments(pixels, segments, sentence), picture_bytes)
        for segments in (predicted, true)
    ]
    root = saved.metadata.get("image_root", "") or ""
    name = sample["file_name"]
    if root and not os.path.relpath(name, root).startswith(".."):
        name = os.path.relpath(name, root)
    return Card(name, image.score, *pictures, predicted.names, true.names, sentence)


def _sections(
    task: str, selection: Selection, seed: int, cards: Mapping[str, Card]
) -> list[dict[str, Any]]:
    """Title, anchor, note and cards of the sections that have images."""
    noun = "answers" if TASKS[task].takes_expression else "images"
    sections = [
        ("best", "Highest scores first.", selection.best),
        ("worst", "Lowest scores first.", selection.worst),
        ("random", f"Drawn from all with seed {seed}.", selection.random),
    ]
    return [
        {
            "title": f"{anchor.capitalize()} {noun}",
            "anchor": anchor,
            "note": note,
            "cards": [cards[image.key] for image in images],
        }
        for anchor, note, images in sections
        if images
    ]


def _overview(scores: Sequence[ImageScore], saved: SavedPredictions) -> dict[str, Any]:
    """What the top of the page shows, by the template's names."""
    values = [score.score for score in scores]
    deciles = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
    is_referring = TASKS[saved.task].takes_expression
    rows = [
        (
            f"{'sentences' if is_referring else 'images'} scored",
            f"{len(values)} of {len(saved.samples)}",
        ),
        ("mean score", percent(statistics.fmean(values))),
        ("median", percent(statistics.median(values))),
        ("worst tenth below", percent(max(0.0, deciles[0]))),
        ("best tenth above", percent(min(1.0, deciles[-1]))),
        ("score of 0", sum(value == 0 for value in values)),
    ]
    wrong = [
        (f"{name.predicted} instead of {name.true}", count)
        for name, count in frequent_wrong_names(scores)
    ]
    return {
        "scores": rows,
        "counts": count_scores(values),
        "wrong_names": None if is_referring else wrong,
        "num_wrong": sum(len(score.wrong_names) for score in scores),
    }


class Card(NamedTuple):
    """One image of the page.

    Attributes:
        file_name: of the image.
        score: what became of it.
        predicted: data URI of the prediction.
        true: data URI of the ground truth.
        predicted_names: names of the predicted segments, best first.
        true_names: names of the annotated segments.
        sentence: of a referring sample, else None.
    """

    file_name: str
    score: ImageScore
    predicted: str
    true: str
    predicted_names: Sequence[str]
    true_names: Sequence[str]
    sentence: str | None = None


def percent(share: float) -> str:
    """A share in [0, 1] with one decimal."""
    return f"{100 * share:.1f} %"


def counted_names(names: Iterable[str]) -> str:
    """Names in order of appearance, repeated ones with their number: "dog ×2, tree"."""
    return ", ".join(
        (name or "(no name)") + (f" ×{count}" if count > 1 else "")
        for name, count in Counter(names).items()
    )


def frequent_wrong_names(
    scores: Iterable[ImageScore], limit: int = 12
) -> list[tuple[WrongName, int]]:
    """The most frequent mistakes, ties in alphabetical order."""
    counts = Counter(wrong for score in scores for wrong in score.wrong_names)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]


def count_scores(scores: Iterable[float]) -> list[int]:
    """How many scores in [0, 1] fall into each of 20 equal parts; 1 falls into the last."""
    counts = [0] * _BINS
    for score in scores:
        counts[min(_BINS - 1, int(score * _BINS))] += 1
    return counts


def html_template(name: str) -> Template:
    """A template of the page; it escapes what it is given."""
    environment = Environment(
        loader=PackageLoader("rose_d2.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "counted_names": counted_names}
    return environment.get_template(name)


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
        return visualizer.draw_referring(mask, sentence).get_image()
    picture = visualizer.draw_segments(
        masks, segments.names, segments.name_scores or None, is_thing=segments.is_thing
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
