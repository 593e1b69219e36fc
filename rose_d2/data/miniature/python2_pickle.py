"""Writes pickles as Python 2 wrote them; no Python 3 can."""

import struct
from typing import Any


def dump_as_python2(content: Any) -> bytes:
    """The pickle of Python 2, protocol 2: its text is byte strings, here in Latin-1.

    Args:
        content: lists, dicts, text, and integers below 2 ** 31.
    """
    return b"\x80\x02" + _encode(content) + b"."


def _encode(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_encode(k) + _encode(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_encode, value)) + b"e"
    if isinstance(value, str):
        text = value.encode("latin-1")
        is_short = len(text) < 256
        length = b"U" + bytes([len(text)]) if is_short else b"T" + struct.pack("<i", len(text))
        return length + text
    return b"J" + struct.pack("<i", value)
