"""What an installed package has beside its code, and what it says where a package is missing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import load_script

from rose_d2 import dependencies

ROOT = Path(__file__).parents[1]


def data_files(package):
    """Files of the package that are no code, with their content."""
    files = (path for path in package.rglob("*") if path.is_file())
    return {
        path.relative_to(package).as_posix(): path.read_bytes()
        for path in files
        if path.suffix not in (".py", ".pyc")
    }


def test_data_files_are_installed_with_the_code(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    installed = data_files(tmp_path / "rose_d2")
    ours = data_files(ROOT / "rose_d2")
    assert {"prompts/tiny_words.txt", "reports/templates/page.html.j2", "py.typed"} <= {*ours}
    assert {name: installed.pop(name) for name in ours} == ours
    released = [*ROOT.glob("configs/**/*.yaml"), ROOT / "checkpoints/rose_tiny/model.safetensors"]
    released.append(ROOT / "checkpoints/rose_tiny/config.yaml")
    assert installed == {
        f"model_zoo/{file.relative_to(ROOT).as_posix()}": file.read_bytes() for file in released
    }


def test_what_is_missing_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setitem(sys.modules, "panopticapi", None)
    monkeypatch.setitem(sys.modules, "panopticapi.utils", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'rose_d2[app]'")):
        dependencies.require("gradio", "The web page")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps panopticapi-lite"):
        dependencies.require("panopticapi.utils", "A panoptic PNG")


def test_an_error_inside_a_package_is_not_taken_for_its_absence(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="^No module named 'nowhere_to_be_found'$"):
        dependencies.require("broken_package", "This")


def test_every_extra_that_a_sentence_names_has_the_package():
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (extras,) = (
        ast.literal_eval(node.value)
        for node in setup.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXTRAS"
    )
    for module, extra in dependencies._EXTRAS.items():
        named = module.replace("_", "-")
        assert any(re.match(rf"{named}\b", package) for package in extras[extra]), module


def test_a_space_installs_what_its_requirements_cannot_name(tmp_path, monkeypatch):
    app = load_script("demo/space/app.py")
    (tmp_path / "rose_d2-9.9-py3-none-any.whl").touch()
    typed = []
    monkeypatch.setattr(app, "HERE", tmp_path)
    monkeypatch.setattr(app.subprocess, "run", lambda command, check: typed.append(command))
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    app.install()
    assert typed[0][-3:] == [
        str(tmp_path / "rose_d2-9.9-py3-none-any.whl"),
        "sal-detectron2==0.7.2",
        "panopticapi-lite==0.2.0",
    ]
    assert "--no-deps" in typed[0]
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: name)
    app.install()
    assert len(typed) == 1, "nothing is missing"
