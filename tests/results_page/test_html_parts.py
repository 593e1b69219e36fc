from rose_d2.reports.image_scores import ImageScore, WrongName
from rose_d2.reports.page import (
    Card,
    card_html,
    counted_names,
    escape,
    frequent_wrong_names,
    percent,
    table_html,
)


def make_card(**entries):
    score = ImageScore(0.5, "1 of 2 found, 1 false", [WrongName("cat", "a & b")])
    card = Card("x.jpg", score, "data:p", "data:t", ["cat", "", "cat"], ["dog"])
    return card_html(card._replace(**entries))


def test_names_are_counted_in_order():
    assert counted_names(["dog", "tree", "dog", ""]) == "dog ×2, tree, (no name)"


def test_percent():
    assert (percent(0.12345), percent(1)) == ("12.3 %", "100.0 %")


def test_escape_is_safe_in_attributes():
    assert escape('<a "b">') == "&lt;a &quot;b&quot;&gt;"


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
    assert "<td>&lt;b&gt;</td>" in table_html("t", [("a", "<b>")], numbers=False)
