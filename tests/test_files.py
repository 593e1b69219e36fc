import multiprocessing
import os

import pytest

from rose_d2.files import (
    FolderLock,
    hide_folder,
    new_folder,
    publish_folder,
    published_path,
    remove_hidden,
    whole_file,
    write_table,
    write_text,
)


def make(path, text):
    hidden = new_folder(str(path))
    with open(os.path.join(hidden, "file"), "w") as file:
        file.write(text)
    return hidden


def test_a_folder_appears_when_it_is_published(tmp_path):
    hidden = make(tmp_path / "one", "new")
    assert not (tmp_path / "one").exists()
    publish_folder(hidden, str(tmp_path / "one"))
    assert os.listdir(tmp_path) == ["one"]
    assert (tmp_path / "one" / "file").read_text() == "new"


def test_what_was_there_stays_hidden_until_it_is_removed(tmp_path):
    publish_folder(make(tmp_path / "one", "old"), str(tmp_path / "one"))
    publish_folder(make(tmp_path / "one", "new"), str(tmp_path / "one"))
    assert (tmp_path / "one" / "file").read_text() == "new"
    (hidden,) = tmp_path.glob(".*")
    assert (hidden / "file").read_text() == "old"
    remove_hidden(str(tmp_path))
    assert os.listdir(tmp_path) == ["one"]


@pytest.mark.parametrize("name", ["model_final", "a.old.name"])
@pytest.mark.parametrize("times_replaced", [0, 1, 2])
def test_a_hidden_folder_knows_its_place(tmp_path, name, times_replaced):
    place = str(tmp_path / name)
    hidden = new_folder(place) + ".old" * times_replaced
    assert published_path(hidden) == published_path(place) == place


def test_hiding_is_one_move_and_takes_the_place_of_leftovers(tmp_path):
    new_folder(str(tmp_path / "one"))
    publish_folder(make(tmp_path / "one", "text"), str(tmp_path / "one"))
    new_folder(str(tmp_path / "one"))
    hide_folder(str(tmp_path / "one"))
    (hidden,) = tmp_path.iterdir()
    assert hidden.name.startswith(".") and (hidden / "file").read_text() == "text"


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced(tmp_path, monkeypatch, durable):
    monkeypatch.chdir(tmp_path)
    for text in ("one", "another"):
        write_text("file", text, durable=durable)
        assert (tmp_path / "file").read_text() == text
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_fails_half_way_leaves_the_former_one(tmp_path):
    write_text(tmp_path / "a.json", "{}")
    with pytest.raises(OSError, match="disk full"), whole_file(tmp_path / "a.json") as partial:
        partial.write_text("{")
        raise OSError("disk full")
    assert (tmp_path / "a.json").read_text() == "{}"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_name_beside_it_keeps_the_suffix_and_is_never_the_same(tmp_path):
    names = set()
    for _ in range(2):
        with whole_file(tmp_path / "folder" / "a.png") as partial:
            partial.touch()
            names.add(partial)
    assert len(names) == 2
    assert {(p.suffix, p.parent) for p in names} == {(".png", tmp_path / "folder")}


def test_a_file_that_cannot_be_flushed_is_an_error_and_a_folder_not(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError

    hidden = new_folder(str(tmp_path / "empty"))
    monkeypatch.setattr(os, "fsync", fail)
    publish_folder(hidden, str(tmp_path / "empty"))
    assert (tmp_path / "empty").is_dir()
    with pytest.raises(OSError):
        publish_folder(make(tmp_path / "one", "text"), str(tmp_path / "one"))
    assert not (tmp_path / "one").exists()


def test_a_table_has_no_formulas(tmp_path):
    values = ["=1+1", "+1", "-x", "@x", "plain", "caf\udce9", -1.5]
    write_table(tmp_path / "a.csv", ["value"], [{"value": value} for value in values])
    lines = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["value", "'=1+1", "'+1", "'-x", "'@x", "plain", "caf\\udce9", "-1.5"]


def _hold(folder, held, free):
    lock = FolderLock(folder, purpose="OUTPUT_DIR")
    held.set()
    free.wait()
    lock.release()


@pytest.mark.parametrize("end", ["released", "killed"])
def test_a_folder_is_held_by_one_process_at_a_time(tmp_path, end):
    context = multiprocessing.get_context("fork")
    held, free = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", held, free))
    other.start()
    assert held.wait(30)
    with pytest.raises(ValueError, match=rf"OUTPUT_DIR .*out is in use by process {other.pid} on"):
        FolderLock(tmp_path / "out", purpose="OUTPUT_DIR")
    free.set() if end == "released" else other.kill()
    other.join()
    FolderLock(tmp_path / "out", purpose="OUTPUT_DIR").release()
    assert not list((tmp_path / "out").iterdir())


def test_a_lock_is_not_taken_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        FolderLock(tmp_path, purpose="OUTPUT_DIR")
    assert (tmp_path / "precious").read_text() == "kept"
