"""Elements of a page: everything that came from data or a model is escaped here."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rose_d2.evaluation.image_scores import ImageScore, WrongName

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
