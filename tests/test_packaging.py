"""What an installed package has beside its code."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def data_files(package):
    """Files of the package that are no code, with their content."""
    files = (path for path in package.rglob("*") if path.is_file())
    return {
        str(path.relative_to(package)): path.read_bytes()
        for path in files
        if path.suffix not in (".py", ".pyc")
    }


def test_data_files_are_installed_with_the_code(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    ours = data_files(ROOT / "rose_d2")
    assert {
        "prompts/tiny_words.txt",
        "prompts/tiny_pairs.txt",
        "reports/templates/page.html.j2",
    } <= {*ours}
    assert data_files(tmp_path / "rose_d2") == ours
