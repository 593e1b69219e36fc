import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from rose_d2.data.datasets.refer_files import load_plain_pickle

PLAIN = [{"ref_id": 5, "sentences": [{"sent": "caf\xe9", "tokens": ("caf\xe9", 1)}], 1: 2.5}]


class _Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "refs(unc).p"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, write, protocol):
    target = tmp_path / "executed"
    content = pickle.dumps([_Malicious(target)], protocol)
    with pytest.raises(ValueError, match=r"refs\(unc\).p is not a plain pickle.*mkdir.*nothing"):
        load_plain_pickle(write(content))
    assert not target.exists()
    # The file is dangerous indeed: an ordinary unpickler executes it.
    pickle.loads(content)
    assert target.is_dir()


@pytest.mark.parametrize(
    "content",
    [
        # The old ways to call something, by hand: INST, OBJ, and a class fetched by number.
        b"(S'executed'\nios\nmkdir\n.",
        b"(cos\nmkdir\nS'executed'\no.",
        b"\x80\x02\x82\x01.",
        # Text that is called, state for a list, a persistent id.
        b"\x80\x02X\x05\x00\x00\x00mkdir)R.",
        b"\x80\x02]}X\x01\x00\x00\x00aK\x01sb.",
        b"Pmkdir\n.",
    ],
)
def test_no_opcode_reaches_anything(tmp_path, write, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="not a plain pickle"):
        load_plain_pickle(write(content))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [OrderedDict(a=1), {1, 2}, np.arange(3), len])
def test_even_harmless_classes_are_refused_by_old_protocols(write, content):
    # Protocol 2 spells sets as a call of builtins.set: nothing is imported, so it is refused too.
    with pytest.raises(ValueError, match="not a plain pickle"):
        load_plain_pickle(write(pickle.dumps(content, 2)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        pickle.dumps(PLAIN, 2)[:-20],
        b"\x80\x02X" + struct.pack("<I", 2**31) + b"short.",
        # Damaged after the first text that is not UTF-8.
        b"\x80\x02]q\x00U\x04caf\xe9q\x01a",
    ],
)
def test_damaged_files_are_refused(write, content):
    with pytest.raises(ValueError, match="not a plain pickle"):
        load_plain_pickle(write(content))


@pytest.mark.parametrize(
    ("stored", "text"),
    [(b"caf\xe9", "caf\xe9"), (b"caf\xc3\xa9", "caf\xe9"), (b"cafe", "cafe")],
    ids=["latin-1", "utf-8", "ascii"],
)
def test_byte_strings_of_python_2_become_text(write, stored, text):
    # What Python 2 wrote for ["..."]: a byte string of a given length, not text.
    content = b"\x80\x02]q\x00U" + bytes([len(stored)]) + stored + b"q\x01a."
    assert load_plain_pickle(write(content)) == [text]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_plain_content_can_be_read(write, protocol):
    assert load_plain_pickle(write(pickle.dumps(PLAIN, protocol))) == PLAIN
