"""The page is parsed: what it shows, that it loads nothing and that no name can act in it."""

import re
from html.parser import HTMLParser

import pytest

from rose_d2.reports import page as page_module
from rose_d2.reports.image_scores import SavedPredictions, choose_images
from rose_d2.reports.page import build_page

VOID = {"meta", "img", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and text; refuses tags that are not closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def make_page(page_data, num=2, seed=0):
    saved = SavedPredictions(page_data.folder, None, 0.5)
    scored = list(saved.score_all())
    return build_page(saved, scored, choose_images(scored, num, seed), seed)


def test_every_kind_with_both_pictures(page_data):
    reader = read(make_page(page_data))
    ids = [attrs["id"] for tag, attrs in reader.tags if tag == "section"]
    assert ids == ["best", "worst", "random"]
    assert sum(tag == "article" for tag, _ in reader.tags) == 6
    pictures = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert len(pictures) == 12
    assert all(p["src"].startswith("data:image/jpeg;base64,") for p in pictures)
    assert pictures[0]["alt"] == "prediction of 0 <i>.png"


def test_numbers_on_top(page_data):
    text = "|".join(read(make_page(page_data)).text)
    assert "images scored|8 of 8" in text
    assert "mean score|75.0 %" in text
    assert "2 of 2 found, 0 false" in text
    assert "Most frequent wrong names, of 4 in all" in text


def test_names_cannot_act(page_data):
    text = make_page(page_data)
    reader = read(text)
    assert not any(tag in ("script", "i") for tag, _ in reader.tags)
    assert not any(key.startswith("on") for _, attrs in reader.tags for key in attrs)
    assert "<script>alert('x')</script> instead of dog" in "".join(reader.text)


def test_nothing_is_loaded_from_elsewhere(page_data):
    # Base64 may spell anything.
    text = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", make_page(page_data))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<script", text)
    assert "default-src 'none'" in text


def test_same_predictions_give_the_same_page(page_data):
    assert make_page(page_data) == make_page(page_data)


def test_colours_for_light_and_dark(page_data):
    assert "prefers-color-scheme: dark" in make_page(page_data)


def test_images_missing(page_data):
    (page_data.images / "0 <i>.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the images .* the first is .*0 <i>\.png"):
        make_page(page_data)


def test_too_large_a_page_is_refused(page_data, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"more than 0; show fewer images \(--num\)"):
        make_page(page_data)
