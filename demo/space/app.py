"""Starts ROSE's page on a Hugging Face Space, after installing what requirements.txt cannot."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
# --no-deps: both declare a numpy<2 that they do not need. The tag of the first says CPython 3.10,
# but only its compiled part, which is not used, is bound to that.
WHEELS = ("sal-detectron2==0.7.2", "panopticapi-lite==0.2.0")


def install() -> None:
    """Install detectron2 and panopticapi where they are missing."""
    if importlib.util.find_spec("detectron2") and importlib.util.find_spec("panopticapi"):
        return
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:"]
    target = ["--target", sysconfig.get_path("purelib"), "--python-version", "3.10"]
    subprocess.run([*command, "--upgrade", *target, *WHEELS], check=True)
    importlib.invalidate_caches()


if __name__ == "__main__":
    install()
    sys.path.insert(0, str(HERE))
    import rose_page

    model = os.environ.get("ROSE_MODEL", "tiny")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    sys.exit(rose_page.main(["--model", model, "--host", "0.0.0.0", "--port", port]))
