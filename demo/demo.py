"""Segment images with ROSE: every object and region with the name the model gives it."""

import argparse
import logging
import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from files import find_images, image_folder

if TYPE_CHECKING:
    from folder_run import FolderRun

# How the KEY of a KEY VALUE pair begins.
_CONFIG_KEY = re.compile(r"(MODEL|TEST|INPUT|DATASETS|DATALOADER|SOLVER)\.\w|(SEED|OUTPUT_DIR)$")
POLICIES = ("all", "lowest-score", "uncertain-boundary")
REFINE_COUNT = 3
EXAMPLES = """\
examples:
  a folder of images, everything in them, names chosen by the model:
    python demo/demo.py photos/ --output output/photos

  one picture of the web:
    python demo/demo.py https://example.org/photo.jpg

  only countable objects, and only those the model is rather sure of:
    python demo/demo.py --input photos/ --task instance --confidence-threshold 0.7

  names from your own list:
    python demo/demo.py --input 'photos/*.jpg' --vocabulary dog,cat,grass

  your own dataset: its images, and the names its annotations use:
    python demo/demo.py --custom-coco images/ annotations.json

  one object, described in words:
    python demo/demo.py --input photo.jpg --refer "the dog on the left"

  polish masks of an earlier run, or of any other system (COCO JSON or a folder of label PNGs):
  the three least sure segments of every image, or all of them with your own words:
    python demo/demo.py --input photos/ --refine output/photos/predictions.json \\
        --output output/polished
    python demo/demo.py --input photos/ --refine label_pngs/ --output output/polished \\
        --instruction "The mask is incomplete, please add what is missing."
    python demo/demo.py --input photos/ --refine results.json --output output/polished \\
        --refine-policy uncertain-boundary --refine-count 5

  names for masks or boxes of any other system:
    python demo/demo.py --input photos/ --name-masks results.json --output output/named
    python demo/demo.py --input photos/ --name-boxes boxes.json --output output/named

  all GPUs of a machine; or, on machines of a cluster, a share each:
    python demo/demo.py photos/ --output output/photos --num-gpus 8
    python demo/demo.py photos/ --output output/photos --shard 0/4

  another model, or other settings of it:
    python demo/demo.py --config-file configs/rose_7b.yaml --input photos/ \\
        --opts MODEL.WEIGHTS checkpoints/rose_7b.safetensors MODEL.DEVICE cuda

Images that already have their result in the output folder are skipped, so an interrupted
command is continued by typing it again. Exit status: 0 when every image was done, 1 when
some could not be (they are listed at the end), 2 when the command itself is wrong.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; names shared with detectron2's demo mean the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        default="configs/rose_tiny.yaml",
        metavar="FILE",
        help="a file, or the name of one that comes with rose_d2; default: %(default)s, with the "
        "checkpoint that ships beside it",
    )
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:1, for example; default: a GPU if there is one"
    )
    parser.add_argument("--verbose", action="store_true", help="show the log and all warnings")
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    _add_images(parser)
    parser.add_argument(
        "--output",
        default="output/demo",
        metavar="FOLDER",
        help="receives overlays/, predictions.json, contact_sheet.jpg and, for the panoptic task, "
        "panoptic/; default: %(default)s",
    )
    _add_question(parser)
    _add_refinement(parser)
    _add_naming(parser)
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images a step; default: %(default)s"
    )
    _add_processes(parser)
    parser.add_argument("--overwrite", action="store_true", help="redo images that are done")
    parser.add_argument(
        "--no-overlay", action="store_true", help="draw no overlays and no contact sheet"
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to the config, must come last",
    )
    return parser


def _add_processes(parser: argparse.ArgumentParser) -> None:
    """Add who shares the work."""
    processes = parser.add_mutually_exclusive_group()
    processes.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="one process a GPU, each with its share of the images; with --device cpu, N processes "
        "on the CPU; default: %(default)s",
    )
    processes.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="do every Nth image from the Ith on (0/4 to 3/4), beside the other shards in the same "
        "--output; at the end, the same command without --shard joins what they wrote",
    )


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 0 <= int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share: the first of four is 0/4, the last 3/4"
        )
    return int(match[1]), int(match[2])


def _add_images(parser: argparse.ArgumentParser) -> None:
    """Add where the images come from."""
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="image files, folders (their images, without sub-folders), quoted globs "
        "('photos/**/*.png' searches sub-folders) or http(s) addresses",
    )
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--input", nargs="+", default=[], metavar="PATH", help="the same")
    images.add_argument(
        "--custom-coco",
        nargs=2,
        metavar=("IMAGES", "JSON"),
        help="the images of a COCO dataset, with its category names as --vocabulary",
    )
    images.add_argument(
        "--custom-labels",
        nargs=2,
        metavar=("IMAGES", "CLASSES"),
        help="a folder of images, with the names in the text file CLASSES as --vocabulary",
    )


def _add_question(parser: argparse.ArgumentParser) -> None:
    """Add what to look for in the images."""
    parser.add_argument(
        "--task",
        choices=("semantic", "instance", "panoptic"),
        help="semantic: one mask a name; instance: countable objects; panoptic (default): both",
    )
    parser.add_argument("--refer", metavar="TEXT", help="segment the one object this describes")
    parser.add_argument(
        "--vocabulary",
        metavar="A,B,C",
        help="names to choose from, or a file with them (COCO JSON, or text with one a line); "
        "without it names are free",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="smallest objectness of a segment, 0 to 1; --refer ignores it; default: %(default)s",
    )


def _add_refinement(parser: argparse.ArgumentParser) -> None:
    """Add what to do with masks that exist already."""
    refinement = parser.add_argument_group("refinement of masks that exist already")
    refinement.add_argument(
        "--refine",
        metavar="MASKS",
        help="a COCO JSON with masks of the images (predictions.json of an earlier run, or any "
        "other system's results with image file names), or a folder of label PNGs with the names "
        "of the images; writes before_after/, the new predictions.json and changes.csv",
    )
    refinement.add_argument(
        "--instruction",
        metavar="TEXT",
        help="what is wrong with the segments, in your words; without it: the mask is incomplete. "
        "Words about the name ('the name is wrong', 'this is not a dog') also ask for another name",
    )
    refinement.add_argument(
        "--refine-policy",
        choices=POLICIES,
        help="which segments of an image: all (default with --instruction); lowest-score first "
        "(default without); uncertain-boundary: the roughest outlines first",
    )
    refinement.add_argument(
        "--refine-count",
        type=int,
        metavar="N",
        help=f"segments an image that a policy chooses; default: {REFINE_COUNT}",
    )
    refinement.add_argument(
        "--truth",
        metavar="MASKS",
        help="true masks of the images, in the forms of --refine: pictures and changes.csv say how "
        "well segments agree with them before and after; nothing is chosen or repaired by them",
    )


def _add_naming(parser: argparse.ArgumentParser) -> None:
    """Add what to do with regions that are to be named."""
    naming = parser.add_argument_group("names for regions that exist already")
    naming.add_argument(
        "--name-masks",
        metavar="MASKS",
        help="name these masks, in the forms of --refine; they stay as they are",
    )
    naming.add_argument(
        "--name-boxes",
        metavar="FILE",
        help="name what is in the boxes of a COCO JSON (bbox: x, y, width, height), and draw it",
    )


def check_options(args: argparse.Namespace) -> None:
    """Check what argparse cannot, before anything slow happens.

    Raises:
        ValueError: a value is out of range, or two options contradict each other.
    """
    if not args.input:
        raise ValueError("no images: name files, a folder or an address, as in demo.py photos/")
    _check_refinement(args)
    _check_naming(args)
    if args.refer is not None:
        if args.task is not None:
            raise ValueError(f"--refer asks for one object, --task {args.task} for all: give one.")
        if args.vocabulary is not None:
            raise ValueError("--refer says what to look for, so it takes no --vocabulary.")
        if not args.refer.strip():
            raise ValueError('--refer is empty: say what to segment, as in --refer "the red car".')
    if args.vocabulary is not None and not args.vocabulary.strip(" ,"):
        raise ValueError("--vocabulary is empty: list names, as in --vocabulary dog,cat,grass.")
    if not 0 <= args.confidence_threshold <= 1:
        raise ValueError(f"--confidence-threshold {args.confidence_threshold} is not in 0 to 1.")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size} must be at least 1.")
    if args.num_gpus < 1:
        raise ValueError(f"--num-gpus {args.num_gpus} must be at least 1.")
    if len(args.opts) % 2:
        raise ValueError(f"--opts takes pairs of KEY VALUE, got {' '.join(args.opts)!r}.")
    if os.path.exists(args.output) and not os.path.isdir(args.output):
        raise ValueError(f"--output {args.output!r} is a file: give a folder.")


def _check_refinement(args: argparse.Namespace) -> None:
    """Check `--refine` and what goes with it.

    Raises:
        ValueError: a value is out of range, or two options contradict each other.
    """
    given = {
        "--instruction": args.instruction,
        "--refine-policy": args.refine_policy,
        "--refine-count": args.refine_count,
        "--truth": args.truth,
    }
    stray = [name for name, value in given.items() if value is not None]
    if args.refine is None:
        if stray:
            raise ValueError(f"{stray[0]} needs --refine MASKS: the masks that are to be refined.")
        return
    questions = {"--task": args.task, "--refer": args.refer, "--vocabulary": args.vocabulary}
    for name, value in questions.items():
        if value is not None:
            raise ValueError(f"--refine works on masks that exist, so it takes no {name}.")
    if args.instruction is not None and not args.instruction.strip():
        raise ValueError('--instruction is empty: say what is wrong, as in "the tail is missing".')
    if args.refine_count is not None and args.refine_count < 1:
        raise ValueError(f"--refine-count {args.refine_count} must be at least 1.")
    policy = args.refine_policy or ("lowest-score" if args.instruction is None else "all")
    if args.refine_count is not None and policy == "all":
        raise ValueError("--refine-count needs a --refine-policy that chooses, all takes them all.")
    if not os.path.exists(args.refine):
        raise ValueError(f"--refine {args.refine!r} does not exist.")
    same = Path(args.output, "predictions.json").resolve() == Path(args.refine).resolve()
    if same:
        raise ValueError("--output is the folder of the masks to refine: give another one.")


def _check_naming(args: argparse.Namespace) -> None:
    """Check `--name-masks` and `--name-boxes`.

    Raises:
        ValueError: two of them are given, or what does not go with them, or no such file.
    """
    given = {"--name-masks": args.name_masks, "--name-boxes": args.name_boxes}
    named = {name: value for name, value in given.items() if value is not None}
    for name, value in named.items():
        others = {
            **{other: file for other, file in named.items() if other != name},
            "--refine": args.refine,
            "--task": args.task,
            "--refer": args.refer,
            "--vocabulary": args.vocabulary,
        }
        for other, used in others.items():
            if used is not None:
                raise ValueError(f"{name} asks what its regions are, so it takes no {other}.")
        if not os.path.exists(value):
            raise ValueError(f"{name} {value!r} does not exist.")
        if Path(args.output, "predictions.json").resolve() == Path(value).resolve():
            raise ValueError(f"--output is the folder of the regions of {name}: give another one.")


def use_custom_data(args: argparse.Namespace) -> None:
    """Replace `--custom-coco` and `--custom-labels` by the input and vocabulary they stand for."""
    custom = args.custom_coco or args.custom_labels
    if custom is None:
        return
    if args.input:
        raise ValueError("custom data bring their images: leave other paths out.")
    images, names = custom
    args.input = [images]
    if args.vocabulary is None and args.refer is None and args.refine is None:
        args.vocabulary = names


def _images(args: argparse.Namespace) -> list[Path]:
    """The images of the paths, or those that an annotation file lists, wherever they lie.

    Raises:
        ValueError: there is none.
    """
    if args.custom_coco is None:
        return find_images(args.input, Path(args.output))
    from rose_d2.data.coco_files import locate, read_coco

    folder, json_file = (os.path.expanduser(path) for path in args.custom_coco)
    if not os.path.isdir(folder):
        raise ValueError(f"--custom-coco: {folder!r} is no folder of images.")
    listed = read_coco(json_file, needed=("images",)).images.values()
    if not listed:  # a file of names alone
        return find_images(args.input, Path(args.output))
    return list(dict.fromkeys(locate(folder, image.file_name) for image in listed))


def read_vocabulary(vocabulary: str) -> list[str]:
    """Read the names of a file, or split "dog, cat,," into ["dog", "cat"], each name once.

    Raises:
        ValueError: the file has no class names.
        FileNotFoundError: what looks like a file does not exist.
    """
    is_file = len(vocabulary) < 4096 and os.path.isfile(os.path.expanduser(vocabulary))
    if is_file or vocabulary.lower().endswith((".json", ".txt")):
        from rose_d2.data.datasets.custom import read_class_names

        return read_class_names(vocabulary)
    return list(dict.fromkeys(name.strip() for name in vocabulary.split(",") if name.strip()))


def _device(args: argparse.Namespace) -> list[str]:
    """The KEY VALUE pair that chooses a device, if none of the config's changes does."""
    import torch

    if args.device:
        return ["MODEL.DEVICE", args.device]
    return (
        [] if "MODEL.DEVICE" in args.opts or torch.cuda.is_available() else ["MODEL.DEVICE", "cpu"]
    )


def make_run(
    args: argparse.Namespace, images: list[Path], share: tuple[int, int] | None = None
) -> "FolderRun":
    """Make the run that the options ask for, or the share (i, n) of it."""
    common = {
        "folder": image_folder(args.input, Path(args.output)),
        "share": share,
        "output": Path(args.output),
        "config_file": args.config_file,
        "opts": [*args.opts, *_device(args)],
        "overwrite": args.overwrite,
        "overlay": not args.no_overlay,
    }
    if args.refine is not None:
        from refine_run import RefineRun

        return RefineRun(
            images,
            masks=Path(args.refine),
            instruction=args.instruction,
            policy=args.refine_policy,
            count=args.refine_count or REFINE_COUNT,
            truth=Path(args.truth) if args.truth else None,
            **common,
        )
    if args.name_masks is not None or args.name_boxes is not None:
        from name_run import NameRun

        return NameRun(
            images,
            masks=Path(args.name_masks) if args.name_masks else None,
            boxes=Path(args.name_boxes) if args.name_boxes else None,
            **common,
        )
    from folder_run import FolderRun

    return FolderRun(
        images,
        task=args.task,
        refer=args.refer,
        candidates=read_vocabulary(args.vocabulary) if args.vocabulary else None,
        min_score=args.confidence_threshold,
        batch_size=args.batch_size,
        **common,
    )


def share_work(args: argparse.Namespace, images: list[Path]) -> "FolderRun":
    """Do the work in `--num-gpus` processes, as far as they get.

    Returns:
        A run that joins what they wrote, and tries once more what they could not do.

    Raises:
        ValueError: there are not so many GPUs, or settings are wrong.
        OSError: files are missing.
    """
    devices = _devices(args)
    first = make_run(args, images)  # whatever is wrong is said once
    first.close()
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    workers = [
        context.Process(target=_do_share, args=(args, images, (i, len(devices)), device))
        for i, device in enumerate(devices)
    ]
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the workers with us
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        interrupted = False
    except KeyboardInterrupt:  # which the workers know too
        interrupted = True
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        signal.signal(signal.SIGTERM, former)
    for number, worker in enumerate(workers):
        if worker.exitcode not in (0, 1, 130):
            ended = f"process {number} ended with status {worker.exitcode}"
            if args.overwrite:  # what it left has earlier results and would count as done
                raise ValueError(f"{ended}; type the command again.")
            print(ended, file=sys.stderr)
    args.overwrite = False  # of what they have just done
    rest = make_run(args, images)
    rest.interrupted = interrupted
    rest.done = len(first.todo) - len(rest.todo)
    rest.earlier = first.earlier
    if interrupted:
        rest.todo = []
    return rest


def _devices(args: argparse.Namespace) -> list[str]:
    """The device of each process.

    Raises:
        ValueError: there are not so many.
    """
    import torch

    chosen = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    wanted = args.device or chosen.get("MODEL.DEVICE") or "cuda"
    if wanted == "cpu":
        return ["cpu"] * args.num_gpus
    if wanted != "cuda":
        raise ValueError(f"--num-gpus chooses the devices itself: leave out {wanted}.")
    there = torch.cuda.device_count()
    if there < args.num_gpus:
        raise ValueError(
            f"--num-gpus {args.num_gpus}: PyTorch finds {there} GPUs here; ask for fewer, or say "
            "--device cpu for as many processes on the CPU."
        )
    return [f"cuda:{number}" for number in range(there)][: args.num_gpus]


def _do_share(
    args: argparse.Namespace, images: list[Path], share: tuple[int, int], device: str
) -> None:
    """Be one of the processes; ends with its exit status."""
    import torch

    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // share[1]))
    be_quiet() if not args.verbose else logging.basicConfig(level=logging.INFO)
    args.device = device
    run = make_run(args, images, share)
    run.bar = share[0]
    run.load()
    sys.exit(run.run(report=False))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line: paths may stand anywhere, KEY VALUE pairs of the config last."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if any(word.startswith("--") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    words = [*args.paths, *rest]
    first_key = next((i for i, word in enumerate(words) if _CONFIG_KEY.match(word)), len(words))
    args.input = [*args.input, *words[:first_key]]
    args.opts = [*args.opts, *words[first_key:]]
    return args


def be_quiet() -> None:
    """Keep to what a user can act on: no warnings of libraries, no bars of loading weights."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DS_ACCELERATOR_LOG_LEVEL", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()


def _version() -> str:
    """The package's version, read without importing it, which takes seconds."""
    package = Path(__file__).resolve().parents[1] / "rose_d2" / "__init__.py"
    return re.search(r'__version__ = "(.+)"', package.read_text(encoding="utf-8"))[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = parse_args(argv)
    if args.version:
        print(f"rose_d2 {_version()}")
        return 0
    try:
        use_custom_data(args)
        check_options(args)
        here = Path(__file__).resolve().parent
        sys.path[:0] = [
            str(folder) for folder in (here, here.parent) if str(folder) not in sys.path
        ]
        # PyTorch takes seconds to import: mistakes are answered before.
        images = _images(args)
        be_quiet() if not args.verbose else logging.basicConfig(level=logging.INFO)
        if args.num_gpus > 1:
            run = share_work(args, images)
        else:
            run = make_run(args, images, args.shard)
        run.load()
    except (ValueError, OSError) as error:
        print(f"demo.py: error: {error}", file=sys.stderr)
        return 2
    return run.run()


if __name__ == "__main__":
    sys.exit(main())
