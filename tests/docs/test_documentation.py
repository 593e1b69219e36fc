"""What the documentation tells a reader to type is typed: commands, Python blocks and notebooks.

Every command is read from the Markdown and parsed by its own script, and its config keys are
checked. Commands of the demo on the tiny model are run as they stand; those that train, download or
need many GPUs are not.
"""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, load_script

from rose_d2.config.read import read_config
from rose_d2.config.released import find_config
from rose_d2.synthetic.clipart import write_sample_images

PAGES = [ROOT / "README.md", ROOT / "demo" / "README.md", ROOT / "datasets" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
# A script of the repository behind whatever starts it.
SCRIPT = re.compile(r"(?:train_net|(?:demo|tools|datasets)/\w+)\.py")


def blocks(page, *languages):
    text = page.read_text(encoding="utf-8")
    return [body for _, language, body in FENCE.findall(text) if language in languages]


def commands():
    """(page, words) of every command line in the pages, indented blocks included."""
    found = []
    for page in PAGES:
        indented = "\n".join(
            line for line in page.read_text().splitlines() if line.startswith("    ")
        )
        for block in [*blocks(page, "", "bash", "text", "console"), indented]:
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                script = SCRIPT.search(line)
                if script and re.match(
                    r"\s*(python|torchrun|deepspeed|srun|\.venv/bin/python)", line
                ):
                    # What follows belongs to the shell.
                    rest = line[script.end() :].split("&")[0].rstrip("' \\")
                    rest = re.sub(r"\$\w+", "1", rest)  # variables of the scheduler
                    words = shlex.split(rest, comments=True)
                    found.append((page.relative_to(ROOT).as_posix(), script[0], tuple(words)))
    return list(dict.fromkeys(found))


COMMANDS = commands()
PARSERS = ("build_parser", "download_parser")


def parse(script, words, monkeypatch):
    """Let a script's own parser read a command line; a wrong one exits."""
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    module = load_script(script)
    if hasattr(module, "parse_args"):
        return module.parse_args(list(words))
    for name in PARSERS:
        if hasattr(module, name):
            return getattr(module, name)().parse_args(list(words))
    read = lambda work, parser, words: parser.parse_args(words)  # noqa: E731
    monkeypatch.setattr(module, "run_preparation", read)
    return module.main(list(words))


@pytest.mark.parametrize(("page", "script", "words"), COMMANDS, ids=lambda part: str(part)[:60])
def test_every_command_is_read_by_its_script(page, script, words, monkeypatch):
    args = parse(script, words, monkeypatch)
    config = getattr(args, "config_file", None)
    if not config:
        return
    of_a_run = config.startswith(("exported/", "output/"))
    opts = getattr(args, "opts", None) or []
    read_config("rose_tiny.yaml" if of_a_run else find_config(config), opts)


def test_the_pages_have_commands():
    assert len(COMMANDS) > 50
    assert {page for page, _, _ in COMMANDS} > {"README.md", "docs/predict.md", "docs/fine_tune.md"}


def test_every_make_target_exists():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    for page in PAGES:
        for block in blocks(page, "", "bash", "text"):
            for target in re.findall(r"^make (\S+)", block, re.MULTILINE):
                assert target in targets.split(), f"{page.name}: make {target}"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with what the examples of the pages speak of."""
    monkeypatch.chdir(tmp_path)
    first, _ = write_sample_images(tmp_path / "photos", 2, 5)
    shutil.copy(first, "photo.jpg")
    shutil.copytree("photos", "images")
    (tmp_path / "label_pngs").mkdir()
    for file in (tmp_path / "photos").iterdir():
        with Image.open(file) as picture:
            labels = np.zeros(picture.size[::-1], np.uint8)
        labels[20:90, 20:90] = 1
        Image.fromarray(labels).save(tmp_path / "label_pngs" / f"{file.stem}.png")
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    for name in ("train.json", "val.json"):
        Path(name).write_text(json.dumps(coco))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "demo/README.md", "docs/predict.md"])
def test_the_commands_of_the_demo_run_as_they_stand(page, desk, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    demo = load_script("demo/demo.py")
    ran = 0
    for where, script, words in COMMANDS:
        # A model that nobody has trained is not there.
        if (
            where != page
            or script != "demo/demo.py"
            or "--config-file" in words
            or "--help" in words
        ):
            continue
        shutil.rmtree("output/demo", ignore_errors=True)
        extra = [] if "--overwrite" in words else ["--overwrite"]
        assert demo.main([*words, *extra]) == 0, (words, capsys.readouterr().err)
        ran += 1
    assert ran >= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    # Others show parts of files that a reader is to write.
    [page for page in PAGES if "".join(blocks(page, "python")).startswith("from ")],
    ids=lambda page: page.stem,
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, desk, monkeypatch):
    pytest.importorskip("supervision", reason="the extra test is not installed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="the extra test is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the extra test is not installed")
    pytest.importorskip("ipykernel", reason="the extra test is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("ROSE_REPOSITORY", str(ROOT))
    content = nbformat.read(notebook, as_version=4)
    assert all(not cell.get("outputs") for cell in content.cells), "saved with outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(content, timeout=600, resources=resources).execute()


def test_the_site_is_built_strictly(tmp_path):
    pytest.importorskip("material", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path))
    build(config)
    assert "from_pretrained" in (tmp_path / "api" / "index.html").read_text()
    listed = {path for entry in _leaves(config.nav) for path in [entry]}
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def _leaves(node):
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node
    return [leaf for child in children for leaf in _leaves(child)]
