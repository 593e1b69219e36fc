"""Generated names as one line that can be drawn."""

from matplotlib.font_manager import FontProperties, findfont, get_font

_LONGEST_LABEL = 36


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
