r"""Segment very many images on all devices of a machine or of a Ray cluster.

    python tools/segment_dataset.py --input photos/ --output parquet/
    python tools/segment_dataset.py --input 's3://bucket/photos/' --output parquet/ --workers 8
    python tools/segment_dataset.py --input images.parquet --output parquet/ --task instance
    python tools/segment_dataset.py --to-coco predictions.json --output parquet/

Ray Data hands batches of paths to one actor a GPU (or, without, to --workers CPU actors); each
writes what it has segmented as a Parquet file of its own. An image that cannot be read goes into
failed-*.parquet with the reason. The same command goes on where an earlier one ended; a worker
that dies is replaced and its batch is done again. --input takes a folder (and those below), a
quoted glob, a Parquet file with a column "path", or a folder of an object store that pyarrow
knows. The output is a folder of a file system that all machines see.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rose_d2.command_line import make_parser, run_main
from rose_d2.dependencies import require
from rose_d2.predictor.parquet import (
    DONE,
    FAILED,
    begin_run,
    finished,
    image_row,
    read_rows,
    to_coco,
    write_rows,
)
from rose_d2.predictor.sources import read_ahead, read_source

_OF_ONE_IMAGE = (ValueError, OSError, MemoryError)


class Segmenter:
    """One actor: a model on its device."""

    def __init__(self, model: str, device: str | None, output: str, question: dict) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        from rose_d2 import Rose

        self.rose = Rose.from_pretrained(model, device=device)
        self.output, self.question = Path(output), question

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Segment a batch of paths, write them, and return their numbers."""
        paths = [str(path) for path in batch["path"]]
        rows, failures = [], []
        for path, image in read_ahead(((path, _read(path)) for path in paths), 1):
            try:
                if isinstance(image, Exception):
                    raise image
                rows.append(image_row(self.rose(image, **self.question), path))
            except _OF_ONE_IMAGE as error:
                failures.append({"path": path, "reason": str(error) or type(error).__name__})
        write_rows(self.output, DONE, rows)
        write_rows(self.output, FAILED, failures)
        return {"done": [len(rows)], "failed": [len(failures)]}


def _read(path: str) -> np.ndarray | Exception:
    """The image, or why there is none."""
    try:
        return read_source(_local(path))
    except _OF_ONE_IMAGE as error:
        return error


def _local(path: str) -> Any:
    """What `Rose` reads: a path, or the picture behind an address of an object store."""
    if "://" not in path or path.startswith(("http://", "https://")):
        return path
    from pyarrow import fs

    store, inner = fs.FileSystem.from_uri(path)
    with tempfile.NamedTemporaryFile(suffix=Path(inner).suffix) as copy:
        with store.open_input_stream(inner) as stream:
            copy.write(stream.read())
        copy.flush()
        with Image.open(copy.name) as picture:
            picture.load()
            return picture


def list_images(source: str) -> list[str]:
    """Paths of all images that `--input` means, sorted.

    Raises:
        ValueError: there are none.
    """
    known = tuple(Image.registered_extensions())
    if source.endswith(".parquet"):
        parquet = require("pyarrow.parquet", "A Parquet input")
        return [
            str(path) for path in parquet.read_table(source, columns=["path"])["path"].to_pylist()
        ]
    if "://" in source:
        fs = require("pyarrow.fs", "An object store")
        store, inner = fs.FileSystem.from_uri(source)
        entries = store.get_file_info(fs.FileSelector(inner, recursive=True))
        scheme = source.split("://")[0]
        paths = [f"{scheme}://{entry.path}" for entry in entries if entry.is_file]
    elif glob.has_magic(source):
        paths = glob.glob(source, recursive=True)
    else:
        paths = [str(path) for path in Path(source).expanduser().rglob("*") if path.is_file()]
    found = sorted(path for path in paths if path.lower().endswith(known))
    if not found:
        raise ValueError(f"--input {source!r} has no images.")
    return found


def segment_all(args: argparse.Namespace) -> int:
    """Do what is not done yet, and report."""
    ray = require("ray", "tools/segment_dataset.py")
    data = require("ray.data", "tools/segment_dataset.py")
    names = [name.strip() for name in (args.vocabulary or "").split(",") if name.strip()]
    question = {"task": args.task, "refer": args.refer, "vocabulary": names or None}
    begin_run(args.output, {"model": args.model, **question})
    everything = list_images(args.input)
    done = finished(args.output)
    todo = [path for path in everything if path not in done]
    print(f"{len(everything)} images, {len(everything) - len(todo)} are done already", flush=True)
    if todo:
        ray.init(
            # Of a cluster Ray knows the resources; here workers share the cores with reading.
            num_cpus=None if os.environ.get("RAY_ADDRESS") else (args.workers or 1) + 1,
            ignore_reinit_error=True, log_to_driver=args.verbose, include_dashboard=False,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
        )  # fmt: skip
        data.DataContext.get_current().enable_progress_bars = args.verbose
        _run(ray, data, todo, args, question)
    failed = {row["path"]: row["reason"] for row in read_rows(args.output, FAILED)}
    failed = {path: reason for path, reason in failed.items() if path not in finished(args.output)}
    for path, reason in list(failed.items())[:10]:
        print(f"  {path}: {reason}", file=sys.stderr)
    print(f"{len(finished(args.output))} images are in {args.output}, {len(failed)} failed")
    return int(bool(failed))


def _run(ray: Any, data: Any, todo: list[str], args: argparse.Namespace, question: dict) -> None:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = args.workers or gpus or 1
    blocks = -(-len(todo) // args.batch_size)
    batches = data.from_items([{"path": path} for path in todo], override_num_blocks=blocks)
    results = batches.map_batches(
        Segmenter,
        fn_constructor_args=(args.model, args.device, str(args.output.resolve()), question),
        batch_size=args.batch_size,
        compute=data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
        num_cpus=0 if gpus else 1,
        max_restarts=-1,  # a worker that died is replaced
        max_task_retries=args.retries,
    )
    started, count = time.monotonic(), 0
    for row in _rows(results):
        count += row["done"] + row["failed"]
        rate = count / (time.monotonic() - started)
        print(f"{count} of {len(todo)} images, {rate:.2f} a second", flush=True)


def _rows(results: Any) -> Iterator[dict[str, int]]:
    for batch in results.iter_batches(batch_size=None):
        yield {key: int(sum(values)) for key, values in batch.items()}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    parser.add_argument("--input", help="see above")
    parser.add_argument("--output", type=Path, required=True, help="folder of Parquet files")
    parser.add_argument("--model", default="tiny", help="see Rose.from_pretrained")
    parser.add_argument("--device", help="of every actor; default: its GPU, else the CPU")
    parser.add_argument("--workers", type=int, help="actors; default: one a GPU, else one")
    parser.add_argument("--batch-size", type=int, default=16, help="images a file (%(default)s)")
    parser.add_argument("--retries", type=int, default=3, help="of a batch whose worker died")
    parser.add_argument("--task", choices=("semantic", "instance", "panoptic"))
    parser.add_argument("--refer", metavar="TEXT", help="the one object this describes")
    parser.add_argument("--vocabulary", metavar="A,B,C", help="names to choose from")
    parser.add_argument("--to-coco", metavar="FILE", help="write --output as one COCO JSON")
    parser.add_argument("--verbose", action="store_true", help="show Ray's own progress and logs")
    args = parser.parse_args(arguments)
    if (args.input is None) == (args.to_coco is None):
        parser.error("give --input to segment, or --to-coco to convert")
    return args


def main(args: argparse.Namespace) -> int:
    """Run the command line; returns the exit status."""
    if args.to_coco is None:
        return segment_all(args)
    counts = to_coco(args.output, args.to_coco)
    print(f"{args.to_coco}: " + ", ".join(f"{count} {key}" for key, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, parse_args()))
