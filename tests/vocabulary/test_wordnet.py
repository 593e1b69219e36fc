"""Where WordNet is looked for, and what of it is read."""

import logging
import shutil
import sys
import threading
import zipfile

import numpy as np
import pytest

from rose_d2.vocabulary import wordnet as lexical_relations
from rose_d2.vocabulary.wordnet import (
    WordNetFiles,
    class_similarity_matrix,
    find_wordnet,
    load_lexical_relations,
    noun_reader,
    open_wordnet,
)


@pytest.fixture
def no_nltk(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "nltk"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nltk", None)


@pytest.mark.parametrize("inside", ["", "dict", "corpora/wordnet", "corpora/wordnet31"])
def test_a_folder_may_hold_wordnet_further_inside(tiny_wordnet, tmp_path, inside):
    shutil.copytree(tiny_wordnet, tmp_path / "data" / inside)
    assert open_wordnet(str(tmp_path / "data")).path == tmp_path / "data" / inside


def test_a_zip_file_reads_like_its_folder(tiny_wordnet, tmp_path):
    with zipfile.ZipFile(tmp_path / "wordnet.zip", "w") as archive:
        for path in tiny_wordnet.iterdir():
            archive.write(path, f"wordnet/{path.name}")
    packed, plain = WordNetFiles(tmp_path / "wordnet.zip"), WordNetFiles(tiny_wordnet)
    for name in ("data.noun", "index.noun", "noun.exc", "lexnames", "data.verb"):
        with packed.open(name) as first, plain.open(name) as second:
            assert first.read() == second.read()
    assert packed.attested_words() == {"kid", "child", "guy", "hand", "dog", "crane"}


def test_files_of_other_word_classes_and_missing_ones_are_empty(tiny_wordnet, tmp_path):
    shutil.copytree(tiny_wordnet, tmp_path / "wordnet")
    (tmp_path / "wordnet" / "data.verb").write_text("not read")
    files = WordNetFiles(tmp_path / "wordnet")
    assert files.open("data.verb").read() == files.open("index.adj").read() == ""
    lexnames = files.open("lexnames").read().splitlines()
    assert lexnames[3].split()[:2] == ["03", "noun.Tops"]
    assert lexnames[18].split()[1] == "noun.person" and lexnames[28].split()[1] == "noun.time"


def test_a_folder_without_wordnet_is_refused(tmp_path):
    (tmp_path / "index.noun").write_text("")
    with pytest.raises(
        ValueError, match=r"WORDNET is .* no index.noun and data.noun; run `python -m nltk"
    ):
        open_wordnet(str(tmp_path))
    with pytest.raises(ValueError, match="nowhere"):
        open_wordnet("nowhere")


def test_it_is_found_where_nltk_looks(tiny_wordnet, tmp_path, monkeypatch, no_nltk):
    shutil.copytree(tiny_wordnet, tmp_path / "second" / "corpora" / "wordnet")
    (tmp_path / "first" / "corpora" / "wordnet").mkdir(parents=True)  # empty: passed over
    monkeypatch.setenv("NLTK_DATA", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert find_wordnet().path == tmp_path / "second" / "corpora" / "wordnet"


def test_without_nltk_it_says_how_to_get_it(tiny_wordnet, no_nltk):
    with pytest.raises(ModuleNotFoundError, match="pip install nltk"):
        noun_reader(WordNetFiles(tiny_wordnet))


def test_the_reader_finds_synsets_by_their_offsets(tiny_wordnet):
    pytest.importorskip("nltk")
    reader = noun_reader(WordNetFiles(tiny_wordnet))
    (poodle,) = reader.synsets("poodles", "n")
    assert poodle.lexname() == "noun.animal" and poodle.definition() == "poodle"
    assert [above.name() for above in poodle.hypernyms()] == ["dog.n.01"]
    assert [synset.definition() for synset in reader.synsets("doggies", "n")] == ["dog"]


def gloss(relations, *spellings):
    sense = relations.sense(spellings)
    return None if sense is None else relations._synset(sense).definition()


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("dogs", "dog"),
        ("Golden Retriever", "retriever"),
        ("table", "table"),  # not of data, its first sense
        ("crowd", "crowd"),  # not concrete, but visible
        ("kid", "child"),  # a person, first and attested
        ("mug", "mug"),  # the person is not attested
        ("guy", "guy"),
        ("fool", "fool"),  # nothing but a person
        ("cat", "cat"),
        ("crane", "crane"),  # not Stephen Crane
        ("plant", "plant"),  # not the works
        ("mouse", "device"),
        ("banana", "fruit"),  # not the plant
        ("rose", "bush"),  # not the wine
        ("poster", "poster"),  # not the horse
        ("street light", "street"),
        ("street-light", "street"),
        ("unheard", None),
        ("", None),
    ],
)
def test_each_word_has_one_sense(relations, word, meaning):
    assert gloss(relations, word) == meaning


def test_several_names_of_a_thing_agree_on_a_sense(relations):
    assert gloss(relations, "kid", "child") == "child"
    assert gloss(relations, "unheard", "sofa") == "couch"
    assert gloss(relations, "plant", "works") == "works"


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
    assert "WordNet is not installed; run `python -m nltk.downloader wordnet`" in caplog.text


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
