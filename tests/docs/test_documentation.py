"""What the documentation tells a reader to type is typed: commands, Python blocks and notebooks.

Every command is read from the Markdown and parsed by its own script, and its config keys are
checked. Then each is run, with `SMALLER` numbers where it would take long, or `RUN_ELSEWHERE` names
the test that runs the same script on something smaller, since it downloads, needs GPUs or takes a
quarter of a minute.
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
from scripts import ROOT, load_script, run_script

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


# Where a command stands -> the test that runs its script.
RUN_ELSEWHERE = {
    r"demo/demo\.py .*rose_7b": "tests/demo/test_real_predictor.py",
    r"quick/mid_size": "tests/tools/test_benchmark.py",
    r"quick/all_datasets": "tests/test_all_datasets.py",
    r"datasets/(download|prepare_(?:ade20k|coco_stuff|mapillary_vistas|refcoco))\.py": (
        r"tests/datasets/test_\1.py"
    ),
    r"datasets/prepare_miniatures\.py": "tests/test_all_datasets.py",
    r"demo/app\.py": "tests/demo/test_app.py",
    r"tools/replay_step\.py": "tests/engine/test_non_finite.py",
    r"tools/plan_memory\.py": "tests/tools/test_plan_memory.py",
    r"tools/(segment_dataset|kill_and_resume|benchmark|check_gpu|check_data)\.py": (
        r"tests/tools/test_\1.py"
    ),
    r"tools/(measure_refinement|matched_targets|reproduce|make_figures|show_session)\.py": (
        r"tests/tools/test_\1.py"
    ),
    r"rose_7b|rose_0p5b": "tests/test_mini_7b.py",
}
# What makes a command short, in front of its KEY VALUE pairs and behind them.
SMALLER = {
    "train_net.py": (
        [],
        [
            *("SOLVER.WARMUP_ITERS", "0", "SOLVER.IMS_PER_BATCH", "2"),
            *("DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER"),
        ],
    ),
    "datasets/prepare_clipart.py": (["--num-workers", "1"], []),
    "demo/demo.py": (["--device", "cpu", "--overwrite"], []),
}
SCENES = ["--num-train", "4", "--num-val", "2", "--num-val-unseen", "1"]


def commands():
    """(page, script, words) of every command in the pages, in blocks and within sentences."""
    found = []
    for page in PAGES:
        indented = "\n".join(
            line for line in page.read_text().splitlines() if line.startswith("    ")
        )
        spans = re.findall(r"`(python [^`]+)`", FENCE.sub("", page.read_text()))
        sentences = "\n".join(" ".join(s.split()) for s in spans if "..." not in s and "…" not in s)
        for block in [*blocks(page, "", "bash", "text", "console"), indented, sentences]:
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
    if "--help" in words:
        return
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


def write_desk(folder):
    """A folder like a checkout, with what the examples of the pages speak of."""
    folder.mkdir()
    for part in ("checkpoints", "configs", "datasets", "demo", "tools", "train_net.py"):
        (folder / part).symlink_to(ROOT / part)
    first, _ = write_sample_images(folder / "photos", 2, 5)
    shutil.copy(first, folder / "photo.jpg")
    shutil.copytree(folder / "photos", folder / "images")
    (folder / "classes.txt").write_text("background: stuff\nsquare\n")
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    for number, file in enumerate(sorted((folder / "photos").iterdir()), start=1):
        with Image.open(file) as picture:
            labels = np.zeros(picture.size[::-1], np.uint8)
        labels[20:90, 20:90] = 1
        for labelled in ("labels", "label_pngs"):
            (folder / labelled).mkdir(exist_ok=True)
            Image.fromarray(labels).save(folder / labelled / f"{file.stem}.png")
        height, width = labels.shape
        size = {"height": height, "width": width}
        content["images"].append({"id": number, "file_name": file.name, **size})
        corners = [20, 20, 90, 20, 90, 90, 20, 90]
        box = {"bbox": [20, 20, 70, 70], "area": 4900, "segmentation": [corners]}
        ids = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0}
        content["annotations"].append({**ids, **box})
    for name in ("train.json", "val.json", "results.json"):
        (folder / name).write_text(json.dumps(content))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Work in such a folder."""
    write_desk(tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")


def elsewhere(script, words):
    """The test that runs a command's script, if it is not run here."""
    line = " ".join([script, *words])
    found = ((re.search(pattern, line), test) for pattern, test in RUN_ELSEWHERE.items())
    return next((match.expand(test) for match, test in found if match), None)


def smaller(script, words, step):
    """The words of a command with what makes it short."""
    front, behind = SMALLER.get(script, ([], []))
    words = list(words)
    if "--num-gpus" in words:
        start = words.index("--num-gpus")
        del words[start : start + 2]
    if script == "datasets/prepare_clipart.py":
        front = [*front, *SCENES] if not words else front
        words = [w if w not in ("20", "60") else "2" for w in words]
    if script == "train_net.py" and "--eval-only" in words:
        front = [*front, "--overwrite-predictions"]
    if script == "train_net.py" and not {"--eval-only", "--resume"} & set(words):
        front = [*front, "--overwrite"]
    if script == "demo/demo.py" and "--device" in words:
        front = ["--overwrite"]
    behind = [*behind, str(step)] if behind else []
    return [*front, *words, *behind]


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """(status, output) of every command that is run here, by its script and words.

    They are typed in the order of the pages, in one folder; what two pages have, once.
    """
    root = tmp_path_factory.mktemp("typed")
    desk = root / "desk"
    write_desk(desk)
    lines = []
    for _, script, words in COMMANDS:
        if elsewhere(script, words) is None:
            step = 2 if "--resume" in words else 1
            words = [word.replace("OUTPUT_DIR/", "output/rose_tiny/") for word in words]
            lines.append((script, *smaller(script, words, step)))
    lines = list(dict.fromkeys(lines))
    # The scenes first.
    scenes = ("datasets/prepare_clipart.py", "--num-workers", "1", *SCENES)
    todo = [(str(desk), script, words) for script, *words in (scenes, *lines)]
    (root / "commands.json").write_text(json.dumps(todo))
    run_script(
        *("tests/helpers/typed_commands.py", root / "commands.json", root / "ended.json"),
        output=root / "output.txt",
        env={"DETECTRON2_DATASETS": root / "data"},
    )
    return dict(zip([scenes, *lines], json.loads((root / "ended.json").read_text()), strict=True))


@pytest.mark.slow
def test_every_command_runs(typed):
    failed = {" ".join(line): end for line, end in typed.items() if end[0] != 0}
    assert not failed, "\n\n".join(f"{line}\n{said}" for line, (_, said) in failed.items())
    scripts = {script for script, *_ in typed}
    assert scripts > {"train_net.py", "demo/demo.py", "tools/score.py"} and len(typed) > 30


def test_other_commands_are_run_by_a_test_of_their_script():
    for _, script, words in COMMANDS:
        test = elsewhere(script, words)
        if test is not None:
            source = (ROOT / test).read_text()
            assert Path(script).stem in source, f"{test} does not run {script}"


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
