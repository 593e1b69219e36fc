r"""Train and evaluate every row of one of the paper's ablation tables, and write the table.

    python tools/reproduce.py table3 --small               # on a laptop's CPU, with clip-art
    python tools/reproduce.py table4 --small --seeds 2
    python tools/reproduce.py table3 --num-gpus 8          # at the paper's size and on its data

Tables: table3 (segmentation frameworks), table4 (super-patches), table5 (LoRA, no small setting),
table6 (how a mask to be repaired is shown), additions (what this project adds, small only).
docs/paper.md says what each is about.

An interrupted command is continued by typing it again: runs that are done are skipped, the others
go on from their last checkpoint. Equal models of two tables are trained once. The table is written
after every run, to OUTPUT/TABLE.md; OUTPUT/TABLE.json holds the results of every run with commit,
config hash and command. A run that stands in a table is done for all of them, even if its folder
in OUTPUT/models is gone. Of table3 --small, OUTPUT/table3.png draws masks, names and passes of the
language model against the number of objects in an image.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.data import MetadataCatalog
from tqdm import tqdm

import rose_d2  # noqa: F401  (registers the datasets)
from rose_d2.command_line import make_parser, run_main
from rose_d2.config.fingerprint import config_hash
from rose_d2.config.read import read_config
from rose_d2.data.build import load_dataset_dicts
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.clipart import register_clipart
from rose_d2.evaluation.object_counts import means_by_count, score_by_count
from rose_d2.files import write_text
from rose_d2.predictor.predictor import RosePredictor
from rose_d2.reports.line_plot import Panel, save_panels
from rose_d2.reports.paper_tables import paper_tables, table_in_markdown
from rose_d2.synthetic.clipart import BenchmarkSettings, write_benchmark

ROOT = Path(__file__).resolve().parents[1]
# What Base-small.yaml is meant for.
SMALL_SCENES = BenchmarkSettings(0, {"train": 4000, "val": 200, "val_unseen": 0}, num_kinds=12)
POLL_SECONDS = 2
# Whose images are scored by their number of objects.
BY_COUNT = "clipart_instance_val"


@dataclass(frozen=True)
class Run:
    """One training of one row.

    Attributes:
        row: its config's name.
        command: that repeats it.
        commands: that train and then evaluate it here.
        folder: where to.
        config_hash: of the config with its seed.
        iterations: of the training.
        kept: its entry in the table's JSON file, if it is done and its folder is gone.
    """

    row: str
    command: str
    commands: tuple[list[str], list[str]]
    folder: Path
    config_hash: str
    iterations: int
    kept: dict = field(default_factory=dict)

    @property
    def results(self) -> dict | None:
        """What was measured, as in results.json; None if it is not done."""
        path = self.folder / "results.json"
        if path.is_file():
            return json.loads(path.read_text())["results"]
        return self.kept.get("results")

    @property
    def by_count(self) -> list[dict] | None:
        """`means_by_count` of its answers; None if they are not measured."""
        path = self.folder / "by_count.json"
        return json.loads(path.read_text()) if path.is_file() else self.kept.get("by_count")

    @property
    def progress(self) -> int:
        """Iterations that are done."""
        if self.results is not None:
            return self.iterations
        path = self.folder / "metrics.json"
        lines = path.read_text().splitlines() if path.is_file() else []
        return json.loads(lines[-1]).get("iteration", 0) if lines else 0


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    tables = paper_tables()
    parser = make_parser(__doc__)
    parser.add_argument("table", choices=tables, help="which table")
    parser.add_argument("--small", action="store_true", help="small models on clip-art, for a CPU")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of every row (default: 1)")
    parser.add_argument("--num-gpus", type=int, default=1, help="of a training (default: 1)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/reproduce"), help="default: %(default)s"
    )
    parser.add_argument(
        "--scenes",
        type=Path,
        default=Path("datasets/small"),
        metavar="DIR",
        help="where the clip-art scenes of --small are, or are made (default: %(default)s)",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to all configs, at the end, such as SOLVER.MAX_ITER 8000",
    )
    args = parser.parse_args(arguments)
    if args.seeds < 1:
        parser.error("--seeds must be at least 1")
    table = tables[args.table]
    if args.small and not table.small_columns:
        parser.error(f"{args.table} has no small setting; run it without --small")
    if table.only_small and not args.small:
        parser.error(f"{args.table} is small only; add --small")
    return args


def reproduce(args: argparse.Namespace) -> None:
    """Run what is not done, and write the table after every run."""
    if args.small:
        write_benchmark(SMALL_SCENES, args.scenes / "clipart", num_workers=os.cpu_count() or 1)
    runs = plan(args)
    by_count = args.table == "table3" and args.small
    with tqdm(
        total=sum(run.iterations for run in runs),
        initial=sum(run.progress for run in runs),
        unit="step",
        desc=args.table,
    ) as bar:
        for number, run in enumerate(runs, start=1):
            bar.set_postfix_str(f"run {number} of {len(runs)}: {run.row}")
            train(run, args, bar)
            if by_count and run.by_count is None:
                measure_by_count(run, args.scenes)
            write_table(args, runs)
            if by_count:
                draw_by_count(args.table, runs, args.output / f"{args.table}.png")
    print((args.output / f"{args.table}.md").read_text())


def plan(args: argparse.Namespace) -> list[Run]:
    """All runs of a table, seed by seed, so that a whole table is there early."""
    folder = ROOT / "configs" / "ablations" / ("small" if args.small else ".")
    written = [args.output / f"{table}.json" for table in paper_tables()]
    tables = [json.loads(path.read_text()) for path in written if path.is_file()]
    kept = {entry["config_hash"]: entry for table in tables for entry in table["runs"]}
    runs = []
    for seed in range(1, args.seeds + 1):
        for row in paper_tables()[args.table].rows:
            config = (folder / f"{row.config}.yaml").resolve()
            options = [*args.opts, "SEED", str(seed)]
            cfg = read_config(str(config), options)
            digest = config_hash(cfg)
            place = args.output / "models" / f"{digest}-seed{seed}"
            program = [
                "train_net.py",
                *("--config-file", str(config.relative_to(ROOT))),
                *("--num-gpus", str(args.num_gpus)),
            ]
            command = shlex.join(["python", *program, *options])
            program += ["--resume"]
            options += ["OUTPUT_DIR", str(place.resolve())]
            commands = (
                [*program, *options, "DATASETS.TEST", "()"],
                [*program, "--eval-only", *options],
            )
            steps, entry = cfg.SOLVER.MAX_ITER, kept.get(digest, {})
            runs.append(Run(row.config, command, commands, place, digest, steps, entry))
    return runs


def train(run: Run, args: argparse.Namespace, bar: tqdm) -> None:
    """Train and evaluate a row, unless that is done.

    Raises:
        ValueError: it failed.
    """
    if run.results is not None:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if args.small:
        environment["DETECTRON2_DATASETS"] = str(args.scenes.resolve())
    log = run.folder / "output.txt"
    for command in run.commands:
        before = run.progress
        with log.open("a") as output:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=output
            )
            try:
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)
                    bar.update(run.progress - before)
                    before = max(before, run.progress)
            finally:
                process.terminate()
                process.wait()
        if process.returncode:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ValueError(
                f"The run of {run.row} ended with status {process.returncode}: {' '.join(last)} "
                f"(all of it is in {log})"
            )


def write_table(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Write the table as Markdown, and where its numbers come from as JSON."""
    table = paper_tables()[args.table]
    measured: dict[str, list[dict]] = {}
    for run in runs:
        if run.results is not None:
            measured.setdefault(run.row, []).append(run.results)
    columns = table.small_columns if args.small else table.columns
    text = table_in_markdown(table, columns, measured)
    write_text(args.output / f"{args.table}.md", text)
    entries = [
        {
            "row": run.row,
            "config_hash": run.config_hash,
            "command": run.command,
            "commit": run.kept.get("commit") or commit(),
            "results": _without_classes(run.results),
            "by_count": run.by_count,
        }
        for run in runs
        if run.results is not None
    ]
    content = {"table": args.table, "small": args.small, "runs": entries}
    write_text(args.output / f"{args.table}.json", json.dumps(content, indent=1) + "\n")


def _without_classes(results: dict) -> dict:
    """Metrics of whole datasets, without those of single classes ("AP-dog")."""
    return {
        dataset: {
            task: {name: value for name, value in metrics.items() if "-" not in name}
            for task, metrics in tasks.items()
        }
        for dataset, tasks in results.items()
    }


def measure_by_count(run: Run, scenes: Path) -> None:
    """Score the images of a run one by one, by their number of objects."""
    register_clipart(scenes)
    dicts = load_dataset_dicts(BY_COUNT, filter_empty=True)
    class_names = MetadataCatalog.get(BY_COUNT).thing_classes
    cfg = read_config(str(run.folder / "config.yaml"), ["MODEL.WEIGHTS", str(run.folder)])
    mapper = RoseDatasetMapper(cfg, is_train=False)
    scores = score_by_count(RosePredictor(cfg).model, dicts, mapper, class_names)
    write_text(run.folder / "by_count.json", json.dumps(means_by_count(scores)) + "\n")


def draw_by_count(table: str, runs: Sequence[Run], path: Path) -> None:
    """Masks, names and passes against the number of objects; a line a row, means over seeds."""
    drawn = {
        "mask IoU": ("iou", 100),
        "exact names (%)": ("name_exact", 100),
        "language-model passes, one after another": ("passes", 1),
    }
    panels = []
    for title, (name, factor) in drawn.items():
        lines = {}
        for row in paper_tables()[table].rows:
            points: dict[int, list[float]] = {}
            for run in runs:
                for mean in (run.by_count or []) if run.row == row.config else []:
                    points.setdefault(mean["objects"], []).append(factor * mean[name])
            if points:
                means = [(count, statistics.fmean(points[count])) for count in sorted(points)]
                lines[row.name] = means
        panels.append(Panel(title, "objects in the image", lines))
    save_panels(panels, path)


def commit() -> str | None:
    """The commit of the working tree; None outside a checkout."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return asked.stdout.strip() or None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_main(reproduce, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
