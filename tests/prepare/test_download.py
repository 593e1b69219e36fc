import hashlib
import logging
import re
import signal
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

import pytest

from rose_d2.prepare import download as remote_file
from rose_d2.prepare import download as transfer
from rose_d2.prepare.download import DownloadError, RemoteFile, fetch, format_size, sole_owner

CONTENT = bytes(range(256)) * 40  # 10 240 bytes, every place in a period is different


SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@dataclass
class Page:
    """One file of the test server; `cuts` end the first responses after so many bytes."""

    content: bytes = CONTENT
    headers: dict = field(default_factory=lambda: {"ETag": '"one"'})
    cuts: list = field(default_factory=list)
    statuses: list = field(default_factory=list)  # errors that the first requests get
    knows_range: bool = True
    heeds_if_range: bool = True
    at_cut: object = lambda: None


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        site = self.server.site
        site.requests.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        page = site.pages.get(self.path)
        if page is None or page.statuses:
            self.send_error(404 if page is None else page.statuses.pop(0))
        elif (start := self.start_of(page)) >= len(page.content):
            self.send_head(416, {"Content-Range": f"bytes */{len(page.content)}"})
        else:
            self.send_content(page, start)

    def send_content(self, page, start):
        body, total = page.content[start:], len(page.content)
        span = {"Content-Range": f"bytes {start}-{total - 1}/{total}"} if start else {}
        headers = {"Content-Type": "application/zip", "Content-Length": len(body), **page.headers}
        self.send_head(206 if start else 200, span | headers)
        cut = page.cuts.pop(0) if page.cuts else None
        self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            page.at_cut()

    def send_head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def start_of(self, page):
        asked = self.headers.get("Range")
        if asked is None or not page.knows_range:
            return 0
        condition = self.headers.get("If-Range")
        if page.heeds_if_range and condition not in (None, *page.headers.values()):
            return 0
        return int(re.fullmatch(r"bytes=(\d+)-", asked)[1])

    def log_message(self, *_):
        pass


class Site:
    """A server on this machine and what it was asked for."""

    def __init__(self):
        self.pages, self.requests = {}, []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.site = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def ranges(self):
        return [asked for _, asked, _ in self.requests]

    def file(self, *names, **published):
        return RemoteFile(tuple(f"{self.url}/{name}" for name in names), **published)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()
    thread.join()


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, which are not made."""
    pauses = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def target(tmp_path):
    return tmp_path / "downloads" / "file.zip"


def names(target):
    return sorted(path.name for path in target.parent.iterdir())


@pytest.mark.parametrize("checksum", [SHA256, MD5])
def test_a_finished_download_is_not_fetched_again(site, target, checksum):
    site.pages["/a"] = Page()
    source = site.file("a", size=len(CONTENT), checksum=checksum)
    assert fetch(source, target) is True
    assert target.read_bytes() == CONTENT
    assert fetch(source, target) is False
    assert site.ranges == [None]
    assert names(target) == ["file.zip"]


def test_a_wrong_file_in_its_place_is_named_and_left(site, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="has 4 bytes instead of 10240; delete it"):
        fetch(site.file("a", size=len(CONTENT)), target)
    assert target.read_bytes() == b"mine" and not site.requests


def test_a_truncated_transfer_goes_on(site, target, pauses):
    site.pages["/a"] = Page(cuts=[3000, 2000])
    fetch(site.file("a", checksum=SHA256), target)
    assert target.read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=3000-", "bytes=5000-"]
    assert site.requests[1][2] == '"one"'
    assert pauses == [1, 1]  # each try brought something new


def test_a_later_call_goes_on(site, target, pauses):
    site.pages["/a"] = Page(cuts=[3000])
    source = site.file("a", checksum=SHA256)
    with pytest.raises(DownloadError, match=r"closed after 3\.0 kB of 10\.2 kB.*goes on from 3\.0"):
        fetch(source, target, attempts=1)
    assert names(target) == ["file.zip.part", "file.zip.part.json"]
    fetch(source, target)
    assert target.read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=3000-"]
    assert names(target) == ["file.zip"]


def test_a_later_call_goes_on_without_checksum_and_etag(site, target, pauses):
    site.pages["/a"] = Page(cuts=[3000], headers={})
    fetch(site.file("a"), target)
    assert target.read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=3000-"]


def test_a_server_without_ranges_sends_all_again(site, target, pauses):
    site.pages["/a"] = Page(cuts=[3000, 6000], knows_range=False)
    fetch(site.file("a", checksum=SHA256), target)
    assert target.read_bytes() == CONTENT
    assert len(site.requests) == 3


def test_a_server_that_never_gets_further_is_given_up(site, target, pauses):
    site.pages["/a"] = Page(cuts=[3000] * 9, knows_range=False)
    with pytest.raises(DownloadError, match="tried 3 times"):
        fetch(site.file("a"), target, attempts=3)
    assert len(site.requests) == 3
    assert pauses == [1, 2]


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_a_changed_file_starts_over(site, target, pauses, heeds_if_range, header):
    site.pages["/a"] = Page(b"x" * 10240, headers={header: "Mon, 1 Jan"}, cuts=[3000])
    with pytest.raises(DownloadError):
        fetch(site.file("a"), target, attempts=1)
    site.pages["/a"] = Page(headers={header: "Tue, 2 Jan"}, heeds_if_range=heeds_if_range)
    fetch(site.file("a"), target)
    assert target.read_bytes() == CONTENT


def test_a_changed_length_starts_over(site, target, pauses):
    site.pages["/a"] = Page(b"x" * 9000, headers={}, cuts=[3000])
    with pytest.raises(DownloadError):
        fetch(site.file("a"), target, attempts=1)
    site.pages["/a"] = Page(headers={})
    fetch(site.file("a"), target)
    assert target.read_bytes() == CONTENT


def test_pieces_that_do_not_fit_start_over_once(site, target, pauses):
    site.pages["/old"] = Page(b"x" * 10240, cuts=[3000])
    site.pages["/a"] = Page()
    with pytest.raises(DownloadError):
        fetch(site.file("old", checksum=SHA256), target, attempts=1)
    fetch(site.file("a", checksum=SHA256), target)
    assert site.ranges == [None, "bytes=3000-", None]
    assert target.read_bytes() == CONTENT


def test_another_mirror_goes_on_if_a_checksum_will_tell(site, target, pauses):
    site.pages["/a"] = Page(cuts=[3000], statuses=[])
    site.pages["/b"] = Page()
    fetch(site.file("a", "b", checksum=SHA256), target, attempts=1)
    assert site.requests[1] == ("/b", "bytes=3000-", None)
    assert target.read_bytes() == CONTENT


def test_another_mirror_starts_over_without_checksum(site, target, pauses):
    site.pages["/a"] = Page(b"x" * 10240, cuts=[3000])
    site.pages["/b"] = Page()
    fetch(site.file("a", "b"), target, attempts=1)
    assert site.requests[1] == ("/b", None, None)
    assert target.read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(site, target):
    site.pages["/a"] = Page(b"y" * 10240)
    with pytest.raises(DownloadError, match=rf"/a: what it sent has the sha256 .* {SHA256[7:]}"):
        fetch(site.file("a", checksum=SHA256), target)
    assert names(target) == []
    assert len(site.requests) == 1


def test_mirrors_are_tried_in_order(site, target, caplog):
    site.pages["/wrong"], site.pages["/right"] = Page(b"y" * 10240), Page()
    source = site.file("gone", "wrong", "right", "never", checksum=SHA256)
    assert fetch(source, target)
    assert [path for path, _, _ in site.requests] == ["/gone", "/wrong", "/right"]
    assert "/gone: HTTP 404 Not Found" in caplog.text
    assert target.read_bytes() == CONTENT


def test_every_mirror_says_why_it_failed(site, target):
    site.pages["/page"] = Page(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    site.pages["/short"] = Page(CONTENT[:99])
    with pytest.raises(DownloadError) as failure:
        fetch(site.file("gone", "page", "short", size=len(CONTENT)), target)
    message = str(failure.value)
    assert message.startswith("file.zip could not be fetched.")
    assert f"{site.url}/gone: HTTP 404 Not Found; {site.url}/page: sends a web page" in message
    assert "/short: has a file of 99 bytes instead of 10240." in message
    assert names(target) == []


def test_a_servers_own_words_become_one_line(site, target, monkeypatch):
    def refuse(request, timeout):
        raise HTTPError(request.full_url, 302, "an infinite loop.\nFound\0\r\n", {}, None)

    monkeypatch.setattr(transfer, "urlopen", refuse)
    with pytest.raises(DownloadError, match=r"/a: HTTP 302 an infinite loop\. Found\.$"):
        fetch(site.file("a"), target)


def test_a_passing_error_is_waited_for(site, target, pauses):
    site.pages["/a"] = Page(statuses=[503, 500, 429])
    fetch(site.file("a"), target)
    assert pauses == [1, 2, 4]
    assert target.read_bytes() == CONTENT


def test_a_dead_host_is_left_for_the_next(site, target, pauses):
    site.pages["/a"] = Page()
    source = RemoteFile(("http://127.0.0.1:9/a", f"{site.url}/a"))
    fetch(source, target, attempts=2)
    assert pauses == [1]
    assert target.read_bytes() == CONTENT


def test_a_silent_server_times_out(site, target, pauses):
    site.pages["/a"] = Page(cuts=[3000], at_cut=lambda: released.wait(5))
    released = threading.Event()
    fetch(site.file("a"), target, timeout=0.2)
    released.set()
    assert target.read_bytes() == CONTENT


def test_a_complete_part_is_only_checked(site, target):
    target.parent.mkdir()
    target.with_name("file.zip.part").write_bytes(CONTENT)
    fetch(site.file("a", size=len(CONTENT), checksum=SHA256), target)
    assert target.read_bytes() == CONTENT and not site.requests


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"too much"])
def test_nothing_left_to_send(site, target, pauses, part):
    site.pages["/a"] = Page()
    target.parent.mkdir()
    target.with_name("file.zip.part").write_bytes(part)
    fetch(site.file("a", checksum=SHA256), target)
    assert target.read_bytes() == CONTENT
    assert len(site.requests) == (1 if part == CONTENT else 2)


def test_ctrl_c_leaves_the_part(site, target, monkeypatch):
    monkeypatch.setattr(transfer, "_CHUNK", 1000)
    main_thread, released = threading.main_thread().ident, threading.Event()

    def interrupt():
        deadline = time.monotonic() + 5
        part = target.with_name("file.zip.part")
        while not part.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        signal.pthread_kill(main_thread, signal.SIGINT)
        released.wait(5)

    site.pages["/a"] = Page(cuts=[5000], at_cut=interrupt)
    source = site.file("a", checksum=SHA256)
    with pytest.raises(KeyboardInterrupt):
        fetch(source, target)
    released.set()
    assert not target.exists()
    assert target.with_name("file.zip.part").read_bytes() == CONTENT[:5000]
    fetch(source, target)
    assert site.ranges == [None, "bytes=5000-"]
    assert target.read_bytes() == CONTENT


def test_a_full_disk_is_no_mirrors_fault(site, target, monkeypatch):
    site.pages["/a"] = Page()
    monkeypatch.setattr(remote_file.shutil, "disk_usage", lambda _: type("", (), {"free": 5000}))
    with pytest.raises(DownloadError, match=r"needs 10\.2 kB, but .* has 5\.0 kB free"):
        fetch(site.file("a", "b"), target)
    assert len(site.requests) == 1


def test_only_one_process_works_on_a_file(target):
    with sole_owner(target):
        another = pytest.raises(DownloadError, match=r"Another process is at work on .*file\.zip")
        with another, sole_owner(target):
            pass
        with sole_owner(target.with_name("other.zip")):
            pass
    with sole_owner(target):
        assert names(target) == ["file.zip.lock"]
    assert names(target) == []


@pytest.mark.parametrize(
    ("published", "words"),
    [
        ({"size": 10240, "checksum": SHA256}, "10.2 kB, sha256 as published"),
        ({"size": 10240}, "no checksum is published, so only its length was checked"),
        ({}, "neither checksum nor size is published"),
    ],
)
def test_it_says_what_was_checked(site, target, caplog, published, words):
    site.pages["/a"] = Page()
    with caplog.at_level(logging.INFO):
        fetch(site.file("a", **published), target)
    assert words in caplog.text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (90_398_720, "90.4 MB"),
        (19_336_861_798, "19.3 GB"),
    ],
)
def test_sizes_for_people(size, text):
    assert format_size(size) == text
