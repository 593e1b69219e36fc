"""Set-up without a network: every command that would install something is recorded instead."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
MINORS = (10, 11, 12, 13)


setup_env = load_script("tools/setup_env.py")
SetupError = setup_env.SetupError


class RecordingEnvironment(setup_env.Environment):
    """Answers questions from a script and records commands instead of running them."""

    def __init__(self, root, version="3.11.7", detectron2=""):
        super().__init__(root, echo=lambda line: self.lines.append(line))
        self.lines, self.commands, self.listed = [], [], []
        self.python_version, self.detectron2 = version, detectron2
        self.fail_at = None

    def ask(self, code):
        if code == setup_env.DETECTRON2_SOURCE:
            return self.detectron2
        if code == setup_env.SITE_PACKAGES:
            return "/site-packages"
        return self.python_version

    def run(self, step, command):
        if self.fail_at and self.fail_at in step:
            raise KeyboardInterrupt
        if "venv" in command:
            self.python_version = "{}.{}.{}".format(*sys.version_info)
        if setup_env.VERSIONS in command:
            return "a warning\nPython and packages\n"
        self.commands.append(" ".join(command))
        if "--requirement" in command:
            self.listed.append(setup_env.LOCKED.findall(Path(command[-1]).read_text()))
        return ""


@pytest.fixture
def repository(tmp_path):
    for name in setup_env.INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    return tmp_path


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 14, 0), (2, 7, 18), (4, 0, 0)])
def test_other_pythons_are_refused_in_one_sentence(version):
    with pytest.raises(SetupError) as error:
        setup_env.check_interpreter(version, "/usr/bin/python3")
    message = str(error.value)
    assert f"/usr/bin/python3 is Python {version[0]}.{version[1]}.{version[2]}" in message
    assert "3.10, 3.11, 3.12 or 3.13" in message and "PYTHON=" in message
    assert "\n" not in message


@pytest.mark.parametrize("minor", MINORS)
def test_tested_pythons_are_accepted(minor):
    setup_env.check_interpreter((3, minor, 0), "python3")


def test_fingerprint_follows_every_input(repository, tmp_path_factory):
    prints = [setup_env.fingerprint(repository, "3.11.7")]
    assert prints[0] == setup_env.fingerprint(repository, "3.11.7")
    prints.append(setup_env.fingerprint(repository, "3.11.8"))
    for name in setup_env.INPUTS:
        (repository / name).write_text("changed")
        prints.append(setup_env.fingerprint(repository, "3.11.7"))
    # A repository that was copied with its .venv needs its own editable installation.
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(repository, copy)
    prints.append(setup_env.fingerprint(copy, "3.11.7"))
    assert len(set(prints)) == len(prints) == 6


def test_environment_of_pip_has_no_strays():
    given = {"PATH": "/bin", "PYTHONPATH": "/x", "PIP_TARGET": "/y", "PIP_INDEX_URL": "file:///z"}
    cleaned = setup_env.clean_environment(given)
    assert "PYTHONPATH" not in cleaned and "PIP_TARGET" not in cleaned
    assert cleaned["PATH"] == "/bin" and cleaned["PIP_INDEX_URL"] == "file:///z"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("Failed to establish a new connection: Name or service: name resolution", "network"),
        ("HTTPSConnectionPool: Read timed out.", "network"),
        ("No matching distribution (from versions: none)", "network"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "hash differs"),
        ("error: command 'gcc' failed", "last lines"),
    ],
)
def test_likely_cause(output, words):
    assert words in setup_env.likely_cause(output)


def test_failed_command_names_the_log_and_shows_the_end(repository):
    lines = []
    environment = setup_env.Environment(repository, echo=lines.append)
    with pytest.raises(SetupError) as error:
        environment.run("a step", ["sh", "-c", "seq 1 20; echo Connection refused >&2; exit 3"])
    assert "a step failed" in str(error.value) and "network" in str(error.value)
    assert str(environment.log) in str(error.value)
    assert "| 20" in lines[-1] and "| 5" not in lines[-1]
    assert "\n5\n" in environment.log.read_text()


def test_only_large_downloads_are_shown(repository):
    lines = []
    output = (
        "  Downloading https://host/packages/nvidia_cudnn_cu13-9.26.0.51-py3-none.whl (519.2 MB)\n"
        "  Downloading tabulate-0.10.0-py3-none-any.whl (35 kB)\n"
        "  Downloading hf_xet-1.8.0-cp38-abi3.whl (4.1 MB)\n"
        "Installing collected packages: a, b, c\n"
    )
    setup_env.Environment(repository, echo=lines.append).run("a step", ["printf", output])
    assert lines[1:] == ["  downloading nvidia_cudnn_cu13, 519.2 MB", "  unpacking 3 package(s)"]


@pytest.mark.parametrize("content", ["", "{half", "[1]", "7"])
def test_unreadable_stamp_counts_as_none(repository, content):
    environment = setup_env.Environment(repository)
    environment.stamp.write_text(content)
    assert environment.read_stamp() == {}


def test_working_environment_is_kept(repository):
    environment = RecordingEnvironment(repository)
    setup_env.prepare_venv(environment, recreate_for=None)
    setup_env.prepare_venv(environment, recreate_for="3.11")
    assert environment.commands == []


@pytest.mark.parametrize("version", ["", "3.9.1"])
def test_foreign_environment_is_never_removed(repository, version):
    mine = repository / ".venv" / "mine"
    mine.write_text("precious")
    with pytest.raises(SetupError, match="was not made by this set-up"):
        setup_env.prepare_venv(RecordingEnvironment(repository, version), recreate_for=None)
    assert mine.read_text() == "precious"


@pytest.mark.parametrize(("version", "asked"), [("", None), ("3.9.1", None), ("3.11.7", "3.12")])
def test_own_environment_is_remade_when_it_does_not_fit(repository, version, asked):
    environment = RecordingEnvironment(repository, version)
    environment.write_stamp(state="started")
    leftover = repository / ".venv" / "leftover"
    leftover.touch()
    setup_env.prepare_venv(environment, asked)
    assert not leftover.exists()
    assert environment.commands[0].endswith(f"-m venv {repository / '.venv'}")
    assert environment.read_stamp(), "an interruption from here on must be recognised as ours"


def test_too_little_disk_is_said_before_anything_is_downloaded(repository, monkeypatch):
    usage = shutil.disk_usage(repository)._replace(free=2 * 1024**3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SetupError, match="10 GiB and its disk has 2.0 GiB"):
        setup_env.prepare_venv(RecordingEnvironment(repository, ""), recreate_for=None)


def test_steps_in_order_and_nothing_the_second_time(repository):
    environment = RecordingEnvironment(repository)
    setup_env.set_up(environment, choice="")
    pip, ordinary, own, detectron2, panopticapi = environment.commands
    assert "--upgrade" in pip and {"pip", "setuptools", "wheel"} <= set(environment.listed[0])
    assert {"torch", "deepspeed", "ruff", "pillow"} <= set(environment.listed[1])
    assert "gradio" not in environment.listed[1]
    assert own.endswith("install --no-deps --no-build-isolation --editable .")
    assert "--no-deps --only-binary=:all:" in detectron2
    assert "--target /site-packages --python-version 3.10" in detectron2
    assert "--no-deps --only-binary=:all:" in panopticapi and "--target" not in panopticapi
    environment.commands.clear()
    environment.detectron2 = "wheel"
    setup_env.set_up(environment, choice="")
    setup_env.set_up(environment, choice="wheel")
    assert environment.commands == []
    assert "up to date (Python and packages)" in environment.lines[-1]


def test_extras_are_added_once_and_kept(repository):
    environment = RecordingEnvironment(repository)
    setup_env.set_up(environment, choice="")
    environment.listed.clear()
    environment.detectron2 = "wheel"
    setup_env.set_up(environment, choice="", extras=["app", "bulk"])
    assert {"gradio", "fastapi", "ray", "torch"} <= set(environment.listed[1])
    environment.commands.clear()
    setup_env.set_up(environment, choice="", extras=["bulk"])
    setup_env.set_up(environment, choice="")
    assert environment.commands == []


@pytest.mark.parametrize("step", ["updating pip", "installing torch", "detectron2", "panopticapi"])
def test_interrupted_set_up_is_taken_up_again(repository, step):
    environment = RecordingEnvironment(repository)
    environment.fail_at = step
    with pytest.raises(KeyboardInterrupt):
        setup_env.set_up(environment, choice="")
    environment.fail_at = None
    environment.commands.clear()
    setup_env.set_up(environment, choice="")
    assert len(environment.commands) == 5


def test_packages_that_do_not_import_are_not_stamped(repository, monkeypatch):
    environment = setup_env.Environment(repository, echo=lambda line: None)
    environment.python.parent.mkdir()
    environment.python.symlink_to(sys.executable)
    monkeypatch.setattr(setup_env, "VERSIONS", "import no_such_package")
    monkeypatch.setattr(setup_env, "install_detectron2", lambda *arguments: "wheel")
    monkeypatch.setattr(setup_env, "install_listed", lambda *arguments: None)
    monkeypatch.setattr(environment, "pip", lambda *arguments: None)
    with pytest.raises(SetupError, match="everything imports failed"):
        setup_env.set_up(environment, choice="")
    assert "inputs" not in environment.read_stamp()


@pytest.mark.parametrize(
    ("present", "choice", "result", "verbs"),
    [
        ("", "", "wheel", ["install"]),
        ("own", "", "own", []),
        ("wheel", "", "wheel", []),
        ("", "wheel", "wheel", ["install"]),
        ("own", "wheel", "wheel", ["uninstall", "install"]),
        ("own", "git", "own", []),
        ("wheel", "git", "own", ["wheel", "uninstall", "install"]),
    ],
)
def test_choice_of_detectron2(repository, present, choice, result, verbs):
    environment = RecordingEnvironment(repository, detectron2=present)
    assert setup_env.install_detectron2(environment, choice) == result
    assert [re.search(r"pip (\w+)", line)[1] for line in environment.commands] == verbs


def test_asking_for_git_overrides_the_stamp(repository):
    environment = RecordingEnvironment(repository)
    setup_env.set_up(environment, choice="")
    environment.commands.clear()
    environment.detectron2 = "wheel"
    setup_env.set_up(environment, choice="git")
    assert any("github.com/facebookresearch/detectron2" in line for line in environment.commands)
    assert environment.read_stamp()["detectron2"] == "own"


def _constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _requirements(monkeypatch):
    """The arguments that setup.py hands to setuptools."""
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    extras = [line for lines in given["extras_require"].values() for line in lines]
    return [Requirement(line) for line in given["install_requires"] + extras]


@pytest.mark.parametrize("minor", MINORS)
def test_every_requirement_has_one_tested_version_in_its_range(monkeypatch, minor):
    place = {"python_version": f"3.{minor}", "sys_platform": "linux"}
    pins = [pin for pin in _constraints() if not pin.marker or pin.marker.evaluate(place)]
    names = [pin.name for pin in pins]
    assert len(set(names)) == len(names)
    by_name = {pin.name: next(iter(pin.specifier)).version for pin in pins}
    for requirement in _requirements(monkeypatch):
        assert by_name[requirement.name] in requirement.specifier, requirement


def test_nothing_is_downloaded_without_a_hash(repository):
    environment = RecordingEnvironment(repository)
    setup_env.set_up(environment, choice="", extras=["app"])
    for command in environment.commands:
        is_own = "--no-deps --no-build-isolation --editable ." in command
        assert is_own != ("--require-hashes" in command)
    assert "--no-build-isolation" in environment.commands[1]  # which would download, too
    with pytest.raises(SetupError, match="no extras apps; known are train, eval"):
        setup_env.set_up(environment, choice="", extras=["apps"])


@pytest.mark.parametrize("minor", MINORS)
def test_the_lock_has_the_tested_versions_with_hashes(monkeypatch, minor):
    """And all that the requirements need, in the part that is taken of it."""
    lock = (ROOT / "requirements.lock").read_text()
    names = {canonicalize_name(requirement.name) for requirement in _requirements(monkeypatch)}
    place = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.9"}
    place |= {"sys_platform": "linux", "platform_machine": "x86_64"}
    entries = re.split(r"\n(?=[a-z])", setup_env.locked_part(lock, names))
    locked = {}
    for entry in entries:
        requirement = Requirement(entry.split(" \\")[0])
        assert "--hash=sha256:" in entry
        if requirement.marker is None or requirement.marker.evaluate(place):
            assert requirement.name not in locked
            locked[requirement.name] = str(requirement.specifier)
    assert names <= locked.keys()
    for pin in _constraints():
        if pin.name in locked and (pin.marker is None or pin.marker.evaluate(place)):
            assert locked[pin.name] == str(pin.specifier)


def test_packages_without_a_registry_entry_are_not_required(monkeypatch):
    names = {requirement.name for requirement in _requirements(monkeypatch)}
    assert names.isdisjoint({"detectron2", "panopticapi", "sal-detectron2", "panopticapi-lite"})


FAKE_PYTHON = """#!/bin/sh
case "$2" in
  *version_info*) echo {version} ;;
  *ensurepip*) exit {without_venv} ;;
  *) echo "RAN $(basename "$0") $@" ;;
esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("pythons", "asked", "expected"),
    [
        ({"python3": "3.11.2"}, "", "RAN python3 tools/setup_env.py --detectron2= --extras="),
        ({"python3": "3.14.0", "python3.12": "3.12.1"}, "", "RAN python3.12 "),
        ({"python3": "3.11.2 -", "python3.10": "3.10.1"}, "", "RAN python3.10 "),
        ({"python3": "3.11.2", "python3.12": "3.12.1"}, "python3.12", "setup_env.py --this-python"),
        ({"python3": "3.9.18"}, "", "python3 is 3.9.18)"),
        ({"python3": "3.11.2 -"}, "", "python3 is 3.11.2 without venv and pip)"),
        ({"python3": "3.11.2", "python3.8": "3.8.1"}, "python3.8", "(python3.8 is 3.8.1)"),
        ({}, "", "(python3 does not run)"),
    ],
)
def test_make_finds_a_python_or_says_what_is_missing(tmp_path, pythons, asked, expected):
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("make", "sh", "basename"):
        (folder / tool).symlink_to(shutil.which(tool))
    for name, version in pythons.items():
        number, _, broken = version.partition(" ")
        (folder / name).write_text(
            FAKE_PYTHON.format(version=number, without_venv=int(bool(broken)))
        )
        (folder / name).chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    command = ["make", "--no-print-directory", "setup", *([f"PYTHON={asked}"] if asked else [])]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = expected.startswith("RAN") or "setup_env.py" in expected
    assert expected in (result.stdout if found else result.stderr)
    assert (result.returncode == 0) == found
    if not found:
        assert "3.10 to 3.13" in result.stderr and "PYTHON=" in result.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_help_is_the_default_and_lists_every_target(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    environment = {"PATH": os.environ["PATH"]}
    text = subprocess.run(
        ["make"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    for target in targets.split():
        assert target == "help" or f"make {target} " in text
