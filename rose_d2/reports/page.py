"""The page as a whole: numbers on top, then the best, the worst and random images."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rose_d2.data.image_io import read_image
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
SCORE_WORDS = {
    "semantic": "The score of an image is the mean IoU over the classes annotated or predicted "
    "in it.",
    "instance": "The score of an image is the F1 of the instances shown (an instance is right at "
    "an IoU of at least 0.5 with one of the same class).",
    "panoptic": "The score of an image is its panoptic quality (PQ), the mean over the classes "
    "annotated or predicted in it.",
    "referring": "The score is the IoU of the answer to the sentence with the target.",
}
STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --ink: #1c1c1e; --soft: #62626a;
  --line: #dcdce0; --accent: #0b64a8; --bad: #a8321c; }
@media (prefers-color-scheme: dark) { :root { --back: #16171a; --card: #202226; --ink: #ececf0;
  --soft: #a5a6ae; --line: #3a3c43; --accent: #79b8ef; --bad: #ff9b85; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 16px 20px 60px; background: var(--back);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .3em 0; } h2 { margin: 2em 0 .2em; font-size: 1.2rem; }
p { margin: .4em 0; max-width: 75em; } a { color: var(--accent); } nav a { margin-right: 1em; }
.soft { color: var(--soft); }
.overview { display: grid; gap: 20px; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr));
  align-items: start; margin: 14px 0; }
table { border-collapse: collapse; } caption { text-align: left; color: var(--soft); }
td, th { padding: 2px 14px 2px 0; text-align: left; font-weight: normal; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; max-width: 640px; height: auto; } .bar { fill: var(--accent); }
.axis { stroke: var(--soft); fill: none; } .label { fill: var(--soft); font-size: 13px; }
.cards { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 600px), 1fr)); }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px; overflow-wrap: anywhere; }
h3 { margin: 0 0 8px; font-size: 1rem; font-weight: normal; } h3 b { font-size: 1.15rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; cursor: zoom-in; }
.pair input { position: absolute; opacity: 0; }
.pair:focus-within { outline: 2px solid var(--accent); }
article:has(input:checked) { grid-column: 1 / -1; }
article:has(input:checked) .pair { cursor: zoom-out; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: 3px; }
.wrong { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 12px; margin: 8px 0 0; }
dt { color: var(--soft); } dd { margin: 0; } pre { white-space: pre-wrap; }
""".strip()
_BINS = 20
_WIDTH, _HEIGHT = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 20, 12, 40
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


def escape(text: object) -> str:
    """Text as HTML shows it, safe in attributes too."""
    return html.escape(str(text), quote=True)


def percent(share: float) -> str:
    """A share in [0, 1] with one decimal."""
    return f"{100 * share:.1f} %"


def card_html(card: Card) -> str:
    """One <article>: score, file, the two pictures, names and what was named wrongly."""
    facts = [("result", escape(card.score.summary))]
    if card.sentence is not None:
        facts.insert(0, ("sentence", escape(card.sentence)))
    else:
        facts.append(("names", escape(counted_names(card.predicted_names)) or "none"))
        facts.append(("annotated", escape(counted_names(card.true_names)) or "nothing"))
    if card.score.wrong_names:
        wrong = ", ".join(
            f"{escape(predicted)} instead of {escape(true)}{_times(count)}"
            for (predicted, true), count in Counter(card.score.wrong_names).items()
        )
        facts.append(("wrong names", f'<span class="wrong">{wrong}</span>'))
    rows = "".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in facts)
    name = escape(card.file_name)
    return (
        f"<article><h3><b>{percent(card.score.score)}</b> "
        f'<span class="soft">{name}</span></h3><label class="pair">'
        f'<input type="checkbox" aria-label="enlarge the pictures of {name}">'
        f"{_figure(card.predicted, 'prediction', name)}{_figure(card.true, 'ground truth', name)}"
        f"</label><dl>{rows}</dl></article>"
    )


def section_html(title: str, anchor: str, note: str, cards: Iterable[Card]) -> str:
    """A heading and its cards."""
    body = "".join(map(card_html, cards))
    return (
        f'<section id="{anchor}"><h2>{escape(title)}</h2><p class="soft">{escape(note)}</p>'
        f'<div class="cards">{body}</div></section>'
    )


def table_html(caption: str, rows: Iterable[tuple[object, object]], *, numbers: bool) -> str:
    """A table of two columns."""
    kind = ' class="number"' if numbers else ""
    body = "".join(
        f'<tr><th scope="row">{escape(title)}</th><td{kind}>{escape(value)}</td></tr>'
        for title, value in rows
    )
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"


def counted_names(names: Iterable[str]) -> str:
    """Names in order of appearance, repeated ones with their number: "dog ×2, tree"."""
    return ", ".join(
        f"{name or '(no name)'}{_times(count)}" for name, count in Counter(names).items()
    )


def frequent_wrong_names(
    scores: Iterable[ImageScore], limit: int = 12
) -> list[tuple[WrongName, int]]:
    """The most frequent mistakes, ties in alphabetical order."""
    counts = Counter(wrong for score in scores for wrong in score.wrong_names)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]


def _figure(source: str, title: str, name: str) -> str:
    return (
        f'<figure><img src="{source}" alt="{title} of {name}">'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _times(count: int) -> str:
    return f" ×{count}" if count > 1 else ""


def score_histogram(scores: Sequence[float]) -> str:
    """Draw how many images have which score.

    Args:
        scores: in [0, 1].

    Returns:
        An <svg> element with 20 bars; classes `bar`, `axis` and `label` are for the page's style.
    """
    counts = [0] * _BINS
    for score in scores:
        counts[min(_BINS - 1, int(score * _BINS))] += 1
    highest = max(*counts, 1)
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    step, floor = plot_width / _BINS, _TOP + plot_height
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="Histogram: number of images by score">'
    ]
    for index, count in enumerate(counts):
        height = plot_height * count / highest
        low, high = 100 * index // _BINS, 100 * (index + 1) // _BINS
        parts.append(
            f'<rect class="bar" x="{_LEFT + index * step + 1:.1f}" y="{floor - height:.1f}" '
            f'width="{step - 2:.1f}" height="{height:.1f}">'
            f"<title>{low} to {high} %: {count}</title></rect>"
        )
    parts.append(f'<path class="axis" d="M{_LEFT} {floor}H{_WIDTH - _RIGHT}"/>')
    for percent in range(0, 101, 20):
        x = _LEFT + plot_width * percent / 100
        parts.append(_label(x, floor + 16, str(percent), "middle"))
    parts.append(_label(_LEFT + plot_width / 2, _HEIGHT - 6, "score (%)", "middle"))
    parts.append(_label(_LEFT - 6, _TOP + 8, str(highest), "end"))
    parts.append(_label(_LEFT - 6, floor, "0", "end"))
    return "".join(parts) + "</svg>"


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


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
