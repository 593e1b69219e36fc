import dataclasses
import functools
import hashlib
import importlib.util
import sys
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rose_d2.prepare import sources
from rose_d2.prepare.download import RemoteFile, sole_owner
from rose_d2.prepare.preparation import run_preparation
from rose_d2.prepare.sources import Archive

SCRIPT = Path(__file__).parents[2] / "datasets" / "download.py"


class QuietHandler(SimpleHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        self.server.requests.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("datasets_download", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/web."""
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "web").mkdir()
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "web"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def table(server, tmp_path, monkeypatch):
    """Four archives: a good one, one with a wrong checksum, one by hand, one with a substitute."""
    for name in ("good", "wrong", "spare"):
        with zipfile.ZipFile(tmp_path / "web" / f"{name}.zip", "w") as file:
            file.writestr(f"{name}/1.txt", name)

    def archive(name, families, checksum=None, **more):
        url = f"http://127.0.0.1:{server.server_port}/{name}.zip"
        content = (tmp_path / "web" / f"{name}.zip").read_bytes()
        checksum = checksum or "sha256:" + hashlib.sha256(content).hexdigest()
        remote = RemoteFile((url,), len(content), checksum)
        return Archive(
            name, families, f"{name}.zip", remote, (f"data/{name}",), "Free.", "data", **more
        )

    archives = (
        archive("good", ("one", "all_good")),
        archive("wrong", ("two",), "md5:" + "0" * 32, by_hand="Put it at {downloads}."),
        Archive(
            "locked", ("two",), "locked.zip", RemoteFile(()), ("locked",), "Ask.", by_hand="Ask me."
        ),
        archive("spare", ("all_good",), substitutes=("data/good",)),
    )
    monkeypatch.setattr(sources, "ARCHIVES", archives)
    return archives


@pytest.fixture
def run(script, table, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "ARCHIVES", table)

    def run(*arguments, answer=None):
        def asked(_):
            if answer is None:
                raise EOFError
            return answer

        monkeypatch.setattr("builtins.input", asked)
        command = ["--root", str(tmp_path / "root"), *arguments]
        return run_preparation(script.main, script.download_parser(), command)

    return run


def test_a_dataset_is_fetched_once(run, server, tmp_path, capsys):
    assert run("one", "--yes") == 0
    assert (tmp_path / "root/data/good/1.txt").read_text() == "good"
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["data"]
    output = capsys.readouterr().out
    assert "bytes to download; " in output and "Free." in output
    assert "fetched     good" in output
    assert run("one") == 0  # nothing to fetch, so nothing is asked
    assert "present     good" in capsys.readouterr().out
    assert server.requests == ["/good.zip"]


def test_another_process_is_left_alone(run, server, tmp_path, capsys):
    with sole_owner(tmp_path / "root/downloads/good.zip"):
        assert run("one", "--yes") == 1
    assert "Another process is at work on" in capsys.readouterr().out
    assert not server.requests


def test_archives_are_kept_when_asked(run, tmp_path):
    assert run("one", "--yes", "--keep-archives") == 0
    assert (tmp_path / "root/downloads/good.zip").exists()


def test_one_failure_does_not_stop_the_others(run, tmp_path, capsys):
    assert run("two", "one", "--yes") == 1
    assert (tmp_path / "root/data/good").exists()
    summary = capsys.readouterr().out.partition("Summary")[2].splitlines()
    assert summary[1] == "  fetched     good"
    assert summary[2] == "  by hand     locked  Ask me."
    assert summary[3].startswith("  failed      wrong   wrong.zip could not be fetched. http")
    assert "has the md5 checksum" in summary[3]
    assert summary[3].endswith(f"Put it at {tmp_path / 'root/downloads'}.")


def test_an_archive_put_there_by_hand_is_unpacked(run, tmp_path):
    (tmp_path / "root/downloads").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "root/downloads/locked.zip", "w") as file:
        file.writestr("locked/1.txt", "locked")
    assert run("locked", "--yes") == 0
    assert (tmp_path / "root/locked/1.txt").read_text() == "locked"


def test_an_archive_unpacks_to_what_its_entry_allows(run, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "ARCHIVES", (dataclasses.replace(table[0], max_growth=0),))
    assert run("one", "--yes") == 1
    assert "good.zip unpacks to more than 0 bytes" in capsys.readouterr().out
    assert not (tmp_path / "root/data/good").exists()


def test_a_substitute_saves_a_download(run, server, tmp_path, capsys):
    assert run("all_good", "--yes") == 0
    assert server.requests == ["/good.zip"]
    assert "not needed  spare  data/good serves as well" in capsys.readouterr().out
    assert run("spare", "--yes") == 0  # asked for by name
    assert (tmp_path / "root/data/spare/1.txt").exists()


def test_a_substitute_that_does_not_arrive_is_a_failure(run, tmp_path, capsys):
    (tmp_path / "web/good.zip").unlink()
    assert run("all_good", "--yes") == 1
    assert "spare  what was to serve instead did not arrive" in capsys.readouterr().out


@pytest.mark.parametrize("answer", ["n", "", None])
def test_without_consent_nothing_is_fetched(run, server, tmp_path, capsys, answer):
    assert run("one", answer=answer) == 1
    assert "Nothing was fetched." in capsys.readouterr().out
    assert not server.requests and not (tmp_path / "root").exists()


def test_consent_goes_on(run):
    assert run("one", answer="Yes") == 0


def test_a_small_disk_is_announced(run, script, monkeypatch, capsys):
    monkeypatch.setattr(script.shutil, "disk_usage", lambda _: type("", (), {"free": 100}))
    assert run("one", answer="n") == 1
    assert "probably too little" in capsys.readouterr().out


def test_the_list_says_what_is_there(run, capsys):
    assert run("one", "--yes") == 0
    capsys.readouterr()
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["archive", "size", "check", "state", "licence"]
    columns = [line.split()[0:1] + line.split()[3:] for line in lines[1:5]]
    assert columns[0] == ["good", "sha256", "present", "Free."]
    assert columns[1] == ["wrong", "md5", "missing", "Free."]
    assert columns[3] == ["spare", "sha256", "not", "needed", "Free."]
    assert lines[3].split() == ["locked", "unknown", "-", "by", "hand", "Ask."]
    assert lines[5:] == ["one = good", "all_good = good, spare", "two = wrong, locked"]


def test_the_real_table_is_listed(script, tmp_path, capsys):
    arguments = ["--list", "--root", str(tmp_path)]
    assert run_preparation(script.main, script.download_parser(), arguments) == 0
    output = capsys.readouterr().out
    row = next(line for line in output.splitlines() if line.startswith("coco_train2017"))
    assert row.split()[1:5] == ["19.3", "GB", "sha256", "missing"]
    assert "refcocog = coco_train2014, refcocog_annotations" in output


def test_mistakes_are_one_sentence(run, capsys):
    assert run("three") == 1
    assert "Unknown dataset 'three'" in capsys.readouterr().err
    assert run() == 1
    assert "Name a dataset (one, all_good, two or all)" in capsys.readouterr().err


def test_help_teaches(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        run_preparation(script.main, script.download_parser(), ["--help"])
    text = capsys.readouterr().out
    assert "python datasets/download.py ade20k refcoco" in text
    assert "--keep-archives" in text and "Exit status" in text
