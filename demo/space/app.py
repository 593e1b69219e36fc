"""Starts ROSE's page on a Hugging Face Space, after installing what requirements.txt cannot."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
# A Space installs requirements.txt before its other files are there, so the wheel cannot be in it.
# --no-deps: the other two declare a numpy<2 that they do not need. The tag of detectron2's says
# CPython 3.10, but only its compiled part, which is not used, is bound to that.
WHEELS = {
    "rose_d2": "rose_d2-*.whl",
    "detectron2": "sal-detectron2==0.7.2",
    "panopticapi": "panopticapi-lite==0.2.0",
}


def install() -> None:
    """Install what is missing of the three."""
    missing = [wheel for name, wheel in WHEELS.items() if importlib.util.find_spec(name) is None]
    if not missing:
        return
    files = [str(file) for wheel in missing for file in HERE.glob(wheel)]
    wanted = [*files, *(wheel for wheel in missing if "==" in wheel)]
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:"]
    target = ["--target", sysconfig.get_path("purelib"), "--python-version", "3.10"]
    subprocess.run([*command, "--upgrade", *target, *wanted], check=True)
    importlib.invalidate_caches()


if __name__ == "__main__":
    install()
    sys.path.insert(0, str(HERE))
    import rose_page

    model = os.environ.get("ROSE_MODEL", "tiny")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    sys.exit(rose_page.main(["--model", model, "--host", "0.0.0.0", "--port", port]))
