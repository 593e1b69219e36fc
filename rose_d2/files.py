"""Files and folders that appear under their name at once, whole or not at all.

They are written under a hidden name beside their place and renamed when they are finished. What a
killed process leaves of a folder may be whole: it can still be given its name.
"""

import contextlib
import csv
import errno
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_PREFIX = ".partial-"
_REPLACED = ".old"
_LOCK_NAME = ".lock"
_PATIENCE_S = 0.5
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_HIDDEN_NAME = re.compile(rf"(?:{re.escape(_PREFIX)})?(.+?)(?:{re.escape(_REPLACED)})*")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Give a path to write to, which replaces `path` when the block ends without an error.

    Args:
        path: the file; its folder is made.
        durable: also wait until it would survive the machine's failure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nobody can foresee the name, so no link can wait there; some writers choose by the suffix.
    partial = path.with_name(f"{_PREFIX}{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        if durable:
            flush_to_disk(str(partial))
        os.replace(partial, path)
        if durable:
            flush_to_disk(str(path.parent))
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str, *, durable: bool = False) -> None:
    """Write a UTF-8 text file, see `whole_file`.

    Half a character, as bytes of another encoding come into Python's text, is spelled out in the
    way of JSON.
    """
    with whole_file(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_table(
    path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write a CSV file, see `whole_file`; no text in it is taken for a formula by a spreadsheet.

    Args:
        path: the file.
        columns: its heading, keys of the rows.
        rows: one value by column each.
    """
    with (
        whole_file(path) as partial,
        # What is no text in UTF-8, such as a file name of another system, is written as \\xe9.
        open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: _no_formula(value) for key, value in row.items()} for row in rows)


def _no_formula(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(_FORMULA_STARTS)
    return f"'{value}" if is_formula else value


class FolderLock:
    """Holds a folder for one program at a time, until it ends or the lock is released.

    Programs that each do a part of the work may share it. The lock is the operating system's, so it
    goes with its process however that ends: a file that a killed process left behind locks nothing.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, purpose: str, part: str | None = None
    ) -> None:
        """
        Args:
            folder: is made where it is missing.
            purpose: what the folder is to the user, such as "OUTPUT_DIR"; for the message.
            part: share the folder with programs that do other parts, such as "1-of-4".

        Raises:
            ValueError: another program holds it; names its machine and process.
            OSError: the folder cannot be written.
        """
        self.path = Path(folder) / _LOCK_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._files: list[tuple[Path, IO[str]]] = []
        wanted = [(self.path, part is not None)]
        if part is not None:
            wanted.append((self.path.with_name(f"{_LOCK_NAME}.{part}"), False))
        try:
            for path, shared in wanted:
                self._files.append((path, _locked_file(path, shared=shared)))
        except BlockingIOError as error:
            self.release()
            raise ValueError(
                f"{purpose} {folder} is in use by {error.args[1]}; wait until it ends, or take "
                "another folder."
            ) from None

    def release(self) -> None:
        """Let others have the folder."""
        while self._files:
            path, file = self._files.pop()
            with file, contextlib.suppress(OSError):
                _lock(file)  # a file that others share stays, on Windows any
                for left in (path, *path.parent.glob(f"{path.name}.*")):  # also by the killed
                    left.unlink(missing_ok=True)


def _locked_file(path: Path, *, shared: bool) -> IO[str]:
    """Open and lock a file for this process, which its children do not inherit.

    Raises:
        BlockingIOError: another process has it; says which.
    """
    # Not through a link, and kept if it is there: another program's lock is on that very file.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    patience = time.monotonic() + _PATIENCE_S
    while True:
        file = os.fdopen(os.open(path, flags, 0o666), "r+")
        try:
            _lock(file, shared=shared)
        except BlockingIOError:
            if shared and time.monotonic() < patience:  # another part may be clearing up
                file.close()
                time.sleep(_PATIENCE_S / 10)
                continue
            holder = file.read().strip() or "another program"
            file.close()
            raise BlockingIOError(errno.EAGAIN, holder) from None
        # Whoever had it may have removed it between these lines.
        if _is_in_place(file, path):
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _is_in_place(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[str], *, shared: bool = False) -> None:
    """Lock an open file, or change the lock on it.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where two runs in one folder stay the user's care
        return
    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except PermissionError as error:  # the other name of the same
        raise BlockingIOError(*error.args) from error
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(*error.args) from error
        # Some network file systems have no locks.


def new_folder(path: str) -> str:
    """Make an empty hidden folder to fill, and return its path.

    Args:
        path: where `publish_folder` will put it.
    """
    hidden = _hidden(path)
    shutil.rmtree(hidden, ignore_errors=True)
    os.makedirs(hidden)
    return hidden


def publish_folder(hidden: str, path: str) -> None:
    """Flush a folder of files to the disk and give it its name.

    Args:
        hidden: from `new_folder`.
        path: its place; a folder that is there is hidden, until `remove_hidden`.
    """
    for name in os.listdir(hidden):
        flush_to_disk(os.path.join(hidden, name))
    flush_to_disk(hidden)
    if os.path.isdir(path):
        replaced = hidden + _REPLACED
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(path, replaced)
    os.replace(hidden, path)
    flush_to_disk(os.path.dirname(path))


def published_path(path: str) -> str:
    """Return where a folder belongs that may be hidden."""
    parent, name = os.path.split(path)
    match = _HIDDEN_NAME.fullmatch(name)
    assert match is not None
    return os.path.join(parent, match[1])


def hide_folder(path: str) -> None:
    """Take a folder out of sight at once, for `remove_hidden`."""
    hidden = _hidden(path)
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)


def remove_hidden(parent: str) -> None:
    """Remove all hidden folders of a folder; what a file system still holds stays for later."""
    for name in os.listdir(parent):
        if name.startswith(_PREFIX):
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)


def flush_to_disk(path: str) -> None:
    """Wait until a file, or the names in a folder, would survive the machine's failure."""
    # Some network file systems cannot flush folders.
    allowed = OSError if os.path.isdir(path or ".") else ()
    descriptor = os.open(path or ".", os.O_RDONLY)
    try:
        with contextlib.suppress(allowed):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hidden(path: str) -> str:
    parent, name = os.path.split(path)
    return os.path.join(parent, _PREFIX + name)
