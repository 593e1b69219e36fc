"""The page as a whole: numbers on top, then the best, the worst and random images."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rose_d2.data.image_io import read_image
from rose_d2.evaluation.image_scores import ImageScore
from rose_d2.results_page.histogram import score_histogram
from rose_d2.results_page.html_parts import (
    STYLE,
    Card,
    escape,
    frequent_wrong_names,
    percent,
    section_html,
    table_html,
)
from rose_d2.results_page.pictures import draw_segments, jpeg_data_uri
from rose_d2.results_page.scored_images import (
    SavedPredictions,
    ScoredImage,
    Selection,
    missing_images,
)

MAX_BYTES = 15_000_000
# What pictures may take of it, before base64 adds a third.
_PICTURE_BYTES = 0.66 * MAX_BYTES

SCORE_WORDS = {
    "semantic": "The score of an image is the mean IoU over the classes annotated or predicted "
    "in it.",
    "instance": "The score of an image is the F1 of the instances shown (an instance is right at "
    "an IoU of at least 0.5 with one of the same class).",
    "panoptic": "The score of an image is its panoptic quality (PQ), the mean over the classes "
    "annotated or predicted in it.",
    "referring": "The score is the IoU of the answer to the sentence with the target.",
}


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
    page = _document(saved, scored, selection, seed, cards)
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
    sentence = sample["sentence"] if saved.task == "referring" else None
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


def _document(
    saved: SavedPredictions,
    scored: Sequence[ScoredImage],
    selection: Selection,
    seed: int,
    cards: Mapping[str, Card],
) -> str:
    noun = "answers" if saved.task == "referring" else "images"
    sections = [
        (f"Best {noun}", "best", "Highest scores first.", selection.best),
        (f"Worst {noun}", "worst", "Lowest scores first.", selection.worst),
        (f"Random {noun}", "random", f"Drawn from all with seed {seed}.", selection.random),
    ]
    title = escape(f"Predictions on {saved.dataset}")
    links = " ".join(f'<a href="#{anchor}">{title}</a>' for title, anchor, _, _ in sections)
    body = "".join(
        section_html(heading, anchor, note, [cards[image.key] for image in images])
        for heading, anchor, note, images in sections
        if images
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing of the page may load anything from elsewhere.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{STYLE}</style></head><body>"
        f"<h1>{title}</h1>{_introduction(saved)}<nav>{links}</nav>"
        f"{_overview([image.score for image in scored], saved)}{body}"
        f"{_origin(saved.store.fingerprint)}</body></html>\n"
    )


def _introduction(saved: SavedPredictions) -> str:
    words = SCORE_WORDS[saved.task]
    if saved.task == "instance":
        words += (
            f" Instances below an objectness of {saved.score_threshold:g} are neither shown nor "
            "scored."
        )
    hint = (
        "These scores put images in order; they are not the benchmark's metric. Click a pair of "
        "pictures to enlarge it."
    )
    return f'<p class="soft">{escape(words)} {hint}</p>'


def _overview(scores: Sequence[ImageScore], saved: SavedPredictions) -> str:
    values = [score.score for score in scores]
    deciles = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
    unit = "sentences" if saved.task == "referring" else "images"
    rows = [
        (f"{unit} scored", f"{len(values)} of {len(saved.samples)}"),
        ("mean score", percent(statistics.fmean(values))),
        ("median", percent(statistics.median(values))),
        ("worst tenth below", percent(max(0.0, deciles[0]))),
        ("best tenth above", percent(min(1.0, deciles[-1]))),
        ("score of 0", sum(value == 0 for value in values)),
    ]
    parts = [table_html("Scores", rows, numbers=True), score_histogram(values)]
    if saved.task != "referring":
        wrong = frequent_wrong_names(scores)
        total = sum(len(score.wrong_names) for score in scores)
        lines = [(f"{name.predicted} instead of {name.true}", count) for name, count in wrong]
        caption = f"Most frequent wrong names, of {total} in all" if total else "No wrong names"
        parts.append(table_html(caption, lines, numbers=True))
    return f'<div class="overview">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _origin(fingerprint: Mapping[str, Any]) -> str:
    text = escape(json.dumps(dict(fingerprint), indent=1, ensure_ascii=False))
    title = "What the predictions were made with"
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"
