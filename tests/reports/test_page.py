"""The page is parsed: what it shows, that it loads nothing and that no name can act in it."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from rose_d2.reports import page as page_module
from rose_d2.reports.image_scores import (
    ImageScore,
    ImageSegments,
    SavedPredictions,
    Selection,
    WrongName,
    choose_images,
)
from rose_d2.reports.page import (
    Card,
    build_page,
    count_scores,
    counted_names,
    draw_segments,
    frequent_wrong_names,
    html_template,
    jpeg_data_uri,
    percent,
)

VOID = {"meta", "img", "input"}
IMAGE = np.full((24, 40, 3), 120, dtype=np.uint8)
PARTS = html_template("page_parts.html.j2").module


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


def test_a_section_without_images_is_not_linked(page_data):
    saved = SavedPredictions(page_data.folder, None, 0.5)
    scored = list(saved.score_all())
    reader = read(build_page(saved, scored, Selection(scored[:1], [], []), 0))
    links = [attrs["href"] for tag, attrs in reader.tags if tag == "a"]
    assert links == ["#best"]


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


def make_card(**entries):
    score = ImageScore(0.5, "1 of 2 found, 1 false", [WrongName("cat", "a & b")])
    card = Card("x.jpg", score, "data:p", "data:t", ["cat", "", "cat"], ["dog"])
    return str(PARTS.card_article(card._replace(**entries)))


def test_names_are_counted_in_order():
    assert counted_names(["dog", "tree", "dog", ""]) == "dog ×2, tree, (no name)"


def test_percent():
    assert (percent(0.12345), percent(1)) == ("12.3 %", "100.0 %")


def test_a_file_name_stays_within_its_attribute():
    tags = read(make_card(file_name="<a \"b\" onload='c'>")).tags
    assert [attrs["alt"] for tag, attrs in tags if tag == "img"] == [
        "prediction of <a \"b\" onload='c'>",
        "ground truth of <a \"b\" onload='c'>",
    ]
    assert not any("onload" in attrs for _, attrs in tags)


def test_card_tells_result_names_and_mistakes():
    text = make_card()
    assert "<b>50.0 %</b>" in text
    assert "<dt>names</dt><dd>cat ×2, (no name)</dd>" in text
    assert "cat instead of a &amp; b</span>" in text
    assert '<img src="data:p" alt="prediction of x.jpg">' in text


def test_card_of_a_sentence():
    text = make_card(sentence="the <left> dog", score=ImageScore(0.0, "", []))
    assert "<dt>sentence</dt><dd>the &lt;left&gt; dog</dd>" in text
    assert "<dt>names</dt>" not in text
    assert "wrong names" not in text


def test_card_without_segments():
    text = make_card(predicted_names=[], true_names=[])
    assert "<dt>names</dt><dd>none</dd>" in text
    assert "<dt>annotated</dt><dd>nothing</dd>" in text


def test_frequent_wrong_names():
    a, b, c = WrongName("a", "x"), WrongName("b", "x"), WrongName("c", "x")
    scores = [ImageScore(0, "", [c, b]), ImageScore(0, "", [a, c])]
    assert frequent_wrong_names(scores) == [(c, 2), (a, 1), (b, 1)]
    assert frequent_wrong_names(scores, limit=1) == [(c, 2)]


def test_table_escapes_cells():
    text = str(PARTS.number_table("t<u>", [("<i>", "<b>")]))
    assert [tag for tag, _ in read(text).tags] == ["table", "caption", "tr", "th", "td"]
    assert "&lt;b&gt;</td>" in text


def bars(scores):
    """(range of the bar, its count, its height) of bars that are not empty."""
    pattern = r'height="([\d.]+)"><title>(\d+ to \d+) %: (\d+)</title>'
    found = re.findall(pattern, str(PARTS.histogram(count_scores(scores))))
    assert len(found) == 20
    return [(span, int(count), float(height)) for height, span, count in found if int(count)]


def test_counts_and_heights():
    low, high = bars([0.0, 0.04, 0.5])
    assert low[:2] == ("0 to 5", 2)
    assert high[:2] == ("50 to 55", 1)
    assert low[2] == 2 * high[2] > 0


def test_a_perfect_score_is_in_the_last_bar():
    assert bars([1.0])[0][:2] == ("95 to 100", 1)


def test_no_scores():
    assert bars([]) == []


def segments(*slices):
    masks = torch.zeros(len(slices), 24, 40, dtype=torch.bool)
    for mask, where in zip(masks, slices):
        mask[where] = True
    count = len(slices)
    return ImageSegments(masks, ["dog"] * count, [0] * count, [True] * count, [0.5] * count)


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


def test_segments_are_drawn_where_they_are():
    picture = draw_segments(IMAGE, segments(np.s_[:, :20]), None)
    changed = (picture != 120).any(axis=2)
    middle = picture.shape[1] // 2
    assert changed[:, : middle - 8].all()
    assert changed[:, middle + 8 :].mean() < 0.3  # only its label reaches there


def test_no_segments_leave_the_image():
    assert (draw_segments(IMAGE, segments(), None) == 120).all()


def test_answer_tones_the_rest_down_and_an_empty_one_does_not():
    answered = draw_segments(IMAGE, segments(np.s_[:, :20]), "left")
    assert answered[-3, -3].tolist() != [120, 120, 120]
    assert (draw_segments(IMAGE, segments(np.s_[:0]), "left") == 120).all()


def test_size_gives_way_to_the_budget():
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    large, small = (decoded(jpeg_data_uri(noise, budget)) for budget in (10**7, 60_000))
    assert large.size == (640, 480)
    assert small.size[0] < 640
    assert len(jpeg_data_uri(noise, 60_000)) < 60_000 * 4 / 3 + 40


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="mask of size"):
        draw_segments(IMAGE[:12], segments(np.s_[:]), None)
