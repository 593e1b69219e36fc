import pickle

import pytest

from rose_d2.data.datasets.refer_files import load_plain_pickle
from rose_d2.synthetic.miniature_refer import dump_as_python2


def test_it_writes_what_python_2_wrote():
    # cPickle.dumps(["caf\xe9", -2], 2) of Python 2, but for its memo.
    assert dump_as_python2(["caf\xe9", -2]) == b"\x80\x02](U\x04caf\xe9J\xfe\xff\xff\xffe."


@pytest.mark.parametrize(
    "content",
    [[], {}, "", "\xe0" * 255, "\xe0" * 256, {"a": [1, {"b": []}], "c": 2**31 - 1}, [-1, "x"]],
)
def test_what_it_writes_can_be_read(tmp_path, content):
    path = tmp_path / "refs.p"
    path.write_bytes(dump_as_python2(content))
    assert load_plain_pickle(path) == content
    assert pickle.loads(dump_as_python2(content), encoding="latin-1") == content
