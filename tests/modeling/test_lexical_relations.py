"""Relations between senses, and the nearness of classes made of them."""

import logging
import sys
import threading

import numpy as np
import pytest

from rose_d2.vocabulary import wordnet as lexical_relations
from rose_d2.vocabulary.wordnet import class_similarity_matrix, load_lexical_relations


def above(relations, word):
    senses = relations.ancestors(relations.sense([word]))
    return {relations._synset(sense).definition(): steps for sense, steps in senses.items()}


def test_ancestors_end_below_the_words_above_everything(relations):
    assert above(relations, "poodle") == {"poodle": 0, "dog": 1, "animal": 2}
    assert above(relations, "sedan") == {"sedan": 0, "car": 1, "vehicle": 2}
    assert above(relations, "organism") == {"organism": 0}


def test_drivers_and_humans_are_persons(relations):
    assert above(relations, "driver") == {"driver": 0, "person": 1}
    assert above(relations, "human") == {"human": 0, "person": 1, "primate": 1, "animal": 2}


def test_wholes_are_followed_upwards(relations):
    wholes = relations.wholes(relations.sense(["rim"]))
    assert [relations._synset(whole).definition() for whole in wholes] == ["wheel", "vehicle"]
    assert relations.wholes(relations.sense(["dog"])) == ()


def test_threads_may_share_it(tiny_wordnet):
    pytest.importorskip("nltk")
    relations = load_lexical_relations(str(tiny_wordnet))
    words = ["poodle", "sedan", "roof", "tail", "streetlight", "hand"] * 50
    expected = [relations.sense([word]) for word in words]
    relations._reader._synset_offset_cache.clear()
    answers = {}

    def ask(number):
        answers[number] = [relations.sense([word]) for word in words]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(answers.values()) == [expected] * 4


def test_off_auto_and_a_folder(tiny_wordnet, monkeypatch, caplog):
    pytest.importorskip("nltk")
    assert load_lexical_relations("") is None
    assert load_lexical_relations(str(tiny_wordnet)) is load_lexical_relations(str(tiny_wordnet))
    with pytest.raises(ValueError, match="no index.noun"):
        load_lexical_relations(str(tiny_wordnet / "missing"))
    load = load_lexical_relations.__wrapped__  # not the cached answer
    monkeypatch.setattr(lexical_relations, "find_wordnet", lambda: None)
    with caplog.at_level(logging.INFO, logger=lexical_relations.__name__):
        assert load("auto") is None
    assert "WordNet is not installed; run `pip install nltk`" in caplog.text


def test_auto_goes_on_without_nltk(tiny_wordnet, monkeypatch, caplog):
    files = lexical_relations.WordNetFiles(tiny_wordnet)
    monkeypatch.setattr(lexical_relations, "find_wordnet", lambda: files)
    monkeypatch.setitem(sys.modules, "nltk", None)
    with caplog.at_level(logging.INFO, logger=lexical_relations.__name__):
        assert load_lexical_relations.__wrapped__("auto") is None
    assert "NLTK is not installed" in caplog.text


def test_path_and_wup_by_hand(tiny_wordnet):
    pytest.importorskip("nltk")
    names = ["dog, domestic dog", "cat", "sedan", "stop sign", "dog"]
    path = class_similarity_matrix(names, "path", wordnet=str(tiny_wordnet))
    # dog - animal - cat; dog - animal - organism - object - artifact - vehicle - car - sedan
    expected = np.eye(5)
    for i, j, value in [(0, 1, 1 / 3), (0, 2, 1 / 8), (1, 2, 1 / 8), (0, 4, 1), (1, 4, 1 / 3)]:
        expected[i, j] = expected[j, i] = value
    expected[2, 4] = expected[4, 2] = 1 / 8
    np.testing.assert_allclose(path, expected)
    wup = class_similarity_matrix(names, "wup", wordnet=str(tiny_wordnet))
    # animal has depth 4 (entity 1), object has depth 2
    np.testing.assert_allclose(wup[0, 1], 2 * 4 / (2 * 4 + 2))
    np.testing.assert_allclose(wup[0, 2], 2 * 2 / (2 * 2 + 7))
    np.testing.assert_array_equal(wup, wup.T)
    np.testing.assert_array_equal(wup[3], [0, 0, 0, 1, 0])


def test_the_measures_are_nltks(relations, tiny_wordnet):
    words = ["poodle", "kid", "roof", "table", "hot dog", "sofa", "driver"]
    synsets = [relations._synset(relations.sense([word])) for word in words]
    for measure in ("path", "wup"):
        matrix = class_similarity_matrix(words, measure, wordnet=str(tiny_wordnet))
        theirs = [[getattr(a, f"{measure}_similarity")(b) for b in synsets] for a in synsets]
        np.testing.assert_allclose(matrix, theirs)


def test_similarity_without_wordnet_or_with_an_unknown_measure_is_refused():
    with pytest.raises(ValueError, match="'lin'.*path, wup"):
        class_similarity_matrix(["dog"], "lin", wordnet="")
    with pytest.raises(ValueError, match="needs WordNet: run"):
        class_similarity_matrix(["dog"], "path", wordnet="")
