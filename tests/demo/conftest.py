"""The script of the demo, with its folder where it finds its own modules."""

import sys

import pytest
from scripts import ROOT, load_script


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return load_script(ROOT / "demo" / "demo.py")
