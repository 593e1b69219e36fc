"""Makes the repository's `.venv`, with everything `make demo` and `make test` need.

`make setup` calls it with a Python that fits. Every step can be repeated, so an interrupted set-up
goes on where it stopped; a stamp lets a finished one return at once. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 13)
INPUTS = ("tools/setup_env.py", "requirements.lock", "setup.py")
NEEDED_GIB = 10
# What `make demo`, `make test` and training need; more are added by name.
EXTRAS = ("dev", "eval", "train")
SHOWN_DOWNLOAD = re.compile(r"Downloading \S*?([^/\s]+?)-\d\S* \((\d{2,}\.\d MB|[\d.]+ GB)\)")

# detectron2 has no package of its own name in the registry. This one re-packages its main branch.
# Its tag says CPython 3.10, but only its compiled part is bound to that, and we never call it.
DETECTRON2_WHEEL = (
    "sal-detectron2==0.7.2 "
    "--hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
)
DETECTRON2_GIT = "detectron2 @ git+https://github.com/facebookresearch/detectron2.git"
PANOPTICAPI_WHEEL = (
    "panopticapi-lite==0.2.0 "
    "--hash=sha256:58d3ffa842a72240162e7fa744c602a0a5320baabbdb3295d770374f4639b486"
)
# Both declare a `numpy<2` that they do not need; their real dependencies are in setup.py.
UNRESOLVED = ("--no-deps", "--only-binary=:all:")

DETECTRON2_SOURCE = """
import detectron2.engine, detectron2.evaluation
from importlib.metadata import distributions
names = {distribution.metadata["Name"] for distribution in distributions()}
print("wheel" if "sal-detectron2" in names else "own")
"""
SITE_PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"
VERSIONS = """
import detectron2.evaluation, importlib.util, panopticapi.evaluation, platform, segment_anything
import torch, torchvision, transformers
assert importlib.util.find_spec("rose_d2"), "rose_d2 itself is not installed"
print(f"Python {platform.python_version()}, torch {torch.__version__}, "
      f"transformers {transformers.__version__}, detectron2 {detectron2.__version__}")
"""


# What builds the packages that come as source; newer setuptools have no pkg_resources.
BASE = ("pip", "setuptools", "wheel")
LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)
NEEDED_BY = re.compile(r"^    #(?: via|  ) ([A-Za-z0-9._-]+)$", re.MULTILINE)


class SetupError(Exception):
    """Set-up cannot go on; the message is one sentence that says what to do."""


def check_interpreter(version: Sequence[int], executable: str) -> None:
    """Raises SetupError for a Python outside the tested range."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        raise SetupError(
            f"{executable} is Python {'.'.join(map(str, version[:3]))}, but rose_d2 needs Python "
            "3.10, 3.11, 3.12 or 3.13: install one, or name it, e.g. "
            "`make setup PYTHON=/path/to/python3.12`."
        )


def fingerprint(root: Path, version: str) -> str:
    """Hash of all that decides what is installed: the files, the interpreter and the place."""
    digest = hashlib.sha256(f"{version} {root}".encode())
    for name in INPUTS:
        digest.update(hashlib.sha256((root / name).read_bytes()).digest())
    return digest.hexdigest()


def declared(setup_file: Path, extras: Sequence[str]) -> set[str]:
    """Names of the packages that setup.py asks for, without running it.

    Raises:
        SetupError: there is no such extra.
    """
    lists = {
        target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(setup_file.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and target.id in ("ROSE", "DETECTRON2", "EXTRAS")
    }
    groups = lists["EXTRAS"]
    if unknown := sorted(set(extras) - set(groups)):
        raise SetupError(
            f"there are no extras {', '.join(unknown)}; known are {', '.join(groups)}."
        )
    wanted = [*lists["ROSE"], *lists["DETECTRON2"], *(p for e in extras for p in groups[e])]
    return {plain_name(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in wanted}


def plain_name(name: str) -> str:
    """A package's name in the one spelling that the registry takes for all."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_part(lock: str, names: set[str]) -> str:
    """The part of requirements.lock that some packages need, theirs and their dependencies'.

    Args:
        lock: of `uv pip compile`, which says below each package what needs it.
        names: plain names of packages.
    """
    starts = [match.start() for match in LOCKED.finditer(lock)]
    entries = [lock[a:b] for a, b in zip(starts, [*starts[1:], len(lock)], strict=True)]
    owners = [plain_name(LOCKED.match(entry)[1]) for entry in entries]
    parents = [{plain_name(name) for name in NEEDED_BY.findall(entry)} for entry in entries]
    needed = set(names)
    while more := {o for o, p in zip(owners, parents, strict=True) if p & needed} - needed:
        needed |= more
    return "".join(entry for entry, owner in zip(entries, owners, strict=True) if owner in needed)


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without what would send Python or pip somewhere else."""
    strays = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_CONSTRAINT"}
    kept = {key: value for key, value in environ.items() if key not in strays}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def likely_cause(output: str) -> str:
    """A person's words for what a failed command printed."""
    if re.search(r"No space left on device", output):
        return "the disk is full"
    if re.search(r"DO NOT MATCH THE HASHES", output):
        return "a downloaded file is not the tested one (its hash differs)"
    network = r"resolution|resolve host|NewConnection|Connection ?(refused|reset|Timeout)"
    if re.search(rf"{network}|unreachable|timed out|from versions: none", output, re.IGNORECASE):
        return "the package registry or GitHub could not be reached (is there a network?)"
    return "its last lines are above"


class Environment:
    """The virtual environment of one repository, with its stamp and its log.

    Args:
        root: the repository; the environment is its `.venv`.
        echo: receives every line meant for the user.
    """

    def __init__(self, root: Path, echo: Callable[[str], None] = print) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self.stamp = self.folder / "rose_d2_setup.json"
        self.log = self.folder / "rose_d2_setup.log"
        self.echo = echo

    def read_stamp(self) -> dict[str, str]:
        """What an earlier set-up left; {} when there is nothing readable."""
        try:
            return dict(json.loads(self.stamp.read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def write_stamp(self, **content: str) -> None:
        """Replaces the stamp in one move, so that it is never half-written."""
        partial = self.stamp.with_suffix(".part")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.stamp)

    def ask(self, code: str) -> str:
        """What the environment's Python prints for `code`; "" when it fails or is missing."""
        if not self.python.exists():
            return ""
        command = [str(self.python), "-I", "-W", "ignore", "-c", code]
        result = subprocess.run(
            command, cwd=self.root, capture_output=True, text=True, errors="replace", check=False
        )
        return result.stdout.strip() if result.returncode == 0 else ""

    def pip(self, step: str, *arguments: str) -> None:
        """Runs pip, see `run`."""
        self.run(step, [str(self.python), "-m", "pip", *arguments])

    def run(self, step: str, command: Sequence[str]) -> str:
        """Runs one command, shows its large downloads and keeps everything in the log.

        Returns:
            What the command printed.

        Raises:
            SetupError: the command failed; the sentence names the likely cause and the log.
        """
        self.echo(f"set-up: {step}")
        lines: list[str] = []
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=clean_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None, "stdout was asked for as a pipe"
        try:
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"\n$ {' '.join(command)}\n")
                for line in process.stdout:
                    log.write(line)
                    lines.append(line)
                    self._show(line)
        except BaseException:
            # Not left behind, where it would install into what the next set-up is working on.
            process.kill()
            process.wait()
            raise
        if process.wait() != 0:
            self.echo("".join(f"  | {line}" for line in lines[-8:]).rstrip())
            raise SetupError(
                f"{step} failed, {likely_cause(''.join(lines))}; the full log is {self.log}, and "
                "the same command goes on from here when run again."
            )
        return "".join(lines)

    def _show(self, line: str) -> None:
        if download := SHOWN_DOWNLOAD.search(line):
            self.echo(f"  downloading {download[1]}, {download[2]}")
        elif line.startswith("Installing collected packages"):
            self.echo(f"  unpacking {line.count(',') + 1} package(s)")


def prepare_venv(env: Environment, recreate_for: str | None) -> None:
    """Keeps a working environment, else makes one with the Python that runs this.

    Args:
        env: the environment.
        recreate_for: version the user asked for, as "3.12"; None accepts any tested one.

    Raises:
        SetupError: an unusable `.venv` is there that set-up did not make.
    """
    version = env.ask("import pip, platform; print(platform.python_version())")
    series = tuple(int(part) for part in version.split(".")[:2]) if version else ()
    asked = recreate_for is None or version.startswith(f"{recreate_for}.")
    if OLDEST <= series <= NEWEST and asked:
        return
    if env.folder.exists() and any(env.folder.iterdir()) and not env.read_stamp():
        state = f"has Python {version}" if version else "has no working Python with pip"
        raise SetupError(
            f"{env.folder} {state} and was not made by this set-up: move it away, or name its "
            "Python if it is a 3.10 to 3.13 (`make setup PYTHON=...`), and run again."
        )
    free = shutil.disk_usage(env.root).free / 1024**3
    if free < NEEDED_GIB:
        raise SetupError(
            f"{env.folder} needs {NEEDED_GIB} GiB and its disk has {free:.1f} GiB free: make room."
        )
    shutil.rmtree(env.folder, ignore_errors=True)
    env.folder.mkdir()
    env.write_stamp(state="started")
    base = getattr(sys, "_base_executable", sys.executable)
    env.run(
        f"making .venv with Python {platform.python_version()} ({base})",
        [base, "-m", "venv", str(env.folder)],
    )


def install_listed(env: Environment, step: str, requirements: str, *options: str) -> None:
    """Installs packages whose hashes are known; pip takes hashes only from files."""
    listing = env.folder / "rose_d2_packages.txt"
    listing.write_text(requirements + "\n")
    env.pip(step, "install", "--require-hashes", *options, "--requirement", str(listing))
    listing.unlink()


def install_detectron2(env: Environment, choice: str) -> str:
    """Keeps an importable detectron2 unless the user chose the other source.

    Args:
        env: the environment, with all ordinary packages.
        choice: "wheel", "git", or "" for whatever is there and else the wheel.

    Returns:
        Where detectron2 now comes from, "wheel" or "own" (GitHub main, or the user's build).
    """
    present = env.ask(DETECTRON2_SOURCE)
    wanted = {"git": "own", "wheel": "wheel", "": present or "wheel"}[choice]
    if present == wanted:
        env.echo(f"set-up: keeping the detectron2 that is installed ({present})")
        return present
    if wanted == "own":
        # Built before the old one goes, so that a failure leaves a working environment.
        wheels = env.folder / "detectron2-git"
        shutil.rmtree(wheels, ignore_errors=True)
        build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels))
        env.pip("building detectron2 from GitHub main (several minutes)", *build, DETECTRON2_GIT)
        env.pip("removing the other detectron2", "uninstall", "--yes", "sal-detectron2")
        built = [str(path) for path in wheels.glob("*.whl")]
        env.pip("installing the detectron2 that was built", "install", "--no-deps", *built)
        return wanted
    if present == "own":
        env.pip("removing the other detectron2", "uninstall", "--yes", "detectron2")
    target = ("--upgrade", "--target", env.ask(SITE_PACKAGES), "--python-version", "3.10")
    install_listed(env, "installing detectron2 (wheel)", DETECTRON2_WHEEL, *UNRESOLVED, *target)
    return wanted


def set_up(
    env: Environment, choice: str, recreate_for: str | None = None, extras: Sequence[str] = ()
) -> None:
    """Brings the environment to the state that this repository asks for; extras stay once asked."""
    prepare_venv(env, recreate_for)
    expected = fingerprint(env.root, env.ask("import platform; print(platform.python_version())"))
    stamp = env.read_stamp()
    source = {"git": "own"}.get(choice, choice) or stamp.get("detectron2")
    extras = sorted({*EXTRAS, *extras, *stamp.get("extras", "").split(",")} - {""})
    is_current = stamp.get("inputs") == expected and stamp.get("detectron2") == source
    if is_current and stamp.get("extras") == ",".join(extras):
        env.echo(f"set-up: .venv is up to date ({stamp.get('versions', '')})")
        return
    env.write_stamp(state="started")
    lock = (env.root / "requirements.lock").read_text(encoding="utf-8")
    install_listed(env, "updating pip", locked_part(lock, set(BASE)), "--upgrade")
    step = "installing torch, transformers and the rest (3 GB on Linux, some minutes)"
    needed = declared(env.root / "setup.py", extras)
    # What builds packages that come as source is there; pip would get it without a hash.
    install_listed(env, step, locked_part(lock, needed), "--no-build-isolation")
    own = ("--no-deps", "--no-build-isolation", "--editable", ".")
    env.pip("installing rose_d2 itself", "install", *own)
    source = install_detectron2(env, choice)
    install_listed(env, "installing panopticapi", PANOPTICAPI_WHEEL, *UNRESOLVED)
    check = [str(env.python), "-I", "-W", "ignore", "-c", VERSIONS]
    versions = env.run("checking that everything imports", check).strip().splitlines()[-1]
    env.write_stamp(inputs=expected, detectron2=source, versions=versions, extras=",".join(extras))
    env.echo(f"set-up: ready ({versions})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs set-up and turns its errors into one sentence and an exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--this-python", action="store_true", help="remake .venv if it is another Python version"
    )
    parser.add_argument(
        "--detectron2", choices=("", "wheel", "git"), default="", help="empty: keep what is there"
    )
    parser.add_argument(
        "--extras", default="", help="more extras of setup.py, such as app,bulk,docs"
    )
    args = parser.parse_args(arguments)
    try:
        check_interpreter(sys.version_info, sys.executable)
        # Two commands at once (`make demo`, `make test`) must not install over each other.
        with Path(__file__).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            asked = "{}.{}".format(*sys.version_info) if args.this_python else None
            set_up(Environment(ROOT), args.detectron2, asked, args.extras.split(","))
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; run the same command to go on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
