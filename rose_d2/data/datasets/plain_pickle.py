"""Reads pickles of plain containers without ever running code from them.

A pickle is a small program: opened carelessly it can call any function. Referring annotations are
nothing but lists, dicts, text and numbers, so they go through an unpickler that knows no class and
no function at all.
"""

import io
import pickle
from pathlib import Path
from typing import Any

# What the unpickler raises on content that is damaged or crafted.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)


class _PlainUnpickler(pickle.Unpickler):
    """Accepts only what needs no import: lists, dicts, tuples, text, bytes and numbers."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def load_plain_pickle(path: str | Path) -> Any:
    """Reads a pickle of built-in containers without ever running code from it.

    The byte strings of Python 2 become text: UTF-8 where that is what they are, else Latin-1.

    Args:
        path: the file.

    Returns:
        The content.

    Raises:
        ValueError: if the file is no pickle, is truncated, or asks for any class or function.
    """
    content = Path(path).read_bytes()
    try:
        return _load(content, "utf-8")
    except UnicodeDecodeError:
        pass
    except _UNPICKLING_ERRORS as error:
        raise _unreadable(path, error) from error
    try:
        return _load(content, "latin1")
    except _UNPICKLING_ERRORS as error:
        raise _unreadable(path, error) from error


def _load(content: bytes, encoding: str) -> Any:
    return _PlainUnpickler(io.BytesIO(content), encoding=encoding).load()


def _unreadable(path: str | Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path} is not a plain pickle of lists, dicts, text and numbers ({error}); nothing in it "
        "was executed. Referring annotations never need more: get the file again from its source."
    )
