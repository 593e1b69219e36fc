"""Where WordNet is looked for, and what of it is read."""

import shutil
import sys
import zipfile

import pytest

from rose_d2.vocabulary.wordnet import WordNetFiles, find_wordnet, noun_reader, open_wordnet


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
    with pytest.raises(ValueError, match=r"WORDNET is .* no index.noun and data.noun; run `pip"):
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
