"""Draw a miniature of every public dataset, to try things without a download.

    python datasets/prepare_miniatures.py --root miniatures
    export DETECTRON2_DATASETS=miniatures
    python datasets/prepare_ade20k.py            # and the other preparation scripts
    python tools/check_data.py
    python train_net.py --config-file configs/quick/all_datasets.yaml

The files have the official names and layouts, with a few clip-art pictures instead of
photographs. The folder should be a new one: real datasets in it would be mixed up with these.
"""

import argparse
import sys
from pathlib import Path

from rose_d2.command_line import make_parser, run_main
from rose_d2.synthetic.miniature_coco import write_coco
from rose_d2.synthetic.miniature_dense import write_ade20k, write_mapillary_vistas
from rose_d2.synthetic.miniature_refer import write_reasonseg, write_refer

WRITERS = {
    "ADE20k": write_ade20k,
    "COCO and COCO-Stuff": write_coco,
    "Mapillary Vistas": write_mapillary_vistas,
    "RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO": write_refer,
    "ReasonSeg": write_reasonseg,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="a new or empty folder")
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Draws every miniature.

    Raises:
        ValueError: the folder is not empty.
    """
    root = args.root.expanduser()
    if root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty; give a new folder.")
    root.mkdir(parents=True, exist_ok=True)
    for name, write in WRITERS.items():
        write(root)
        print(f"drew {name}")
    print(f"The miniatures are in {root}; `export DETECTRON2_DATASETS={root}` to use them.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(prepare, build_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
