"""Ablation tables: what is run, what is not run again, and what is written."""

import dataclasses
import json
import os
import shutil
import sys

import pytest
from scripts import load_script

from rose_d2.data.datasets.builtin import DEFAULT_ROOT
from rose_d2.data.datasets.clipart import register_clipart

RESULTS = {
    "clipart_sem_seg_val": {"sem_seg": {"mIoU": 40.0}},
    "clipart_instance_val": {"segm": {"AP": 30.0, "AP50": 50.0, "AP75": 31.0}},
}
WITH_CLASSES = {"sem_seg": {"mIoU": 40.0, "IoU-dog": 10.0}}
# Stands for a training, which counts to three or fails in the second step, and an evaluation.
STAND_IN = """
import json, pathlib, sys
folder, fails = pathlib.Path(sys.argv[1]), sys.argv[2] == "True"
if sys.argv[3] == "True":
    (folder / "results.json").write_text(json.dumps({"results": %s}))
    sys.exit()
with (folder / "metrics.json").open("a") as file:
    for step in (1, 2, 3):
        file.write(json.dumps({"iteration": step}) + "\\n")
        if fails and step == 2:
            sys.exit("the disk is full")
"""


@pytest.fixture
def tool(monkeypatch, tmp_path):
    tool = load_script("tools/reproduce.py")
    monkeypatch.setattr(tool, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(tool, "write_benchmark", lambda *args, **kwargs: None)
    return tool


@pytest.fixture
def stand_in(tool, monkeypatch, tmp_path):
    """Trainings are the stand-in; returns the rows that were trained, and a row that fails."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN % repr({**RESULTS, "clipart_sem_seg_val": WITH_CLASSES}))
    started, failing = [], set()
    plan, train = tool.plan, tool.train

    def planned(args):
        return [
            dataclasses.replace(
                run,
                commands=tuple(
                    [str(script), str(run.folder), str(run.row in failing), str(evaluates)]
                    for evaluates in (False, True)
                ),
                iterations=3,
            )
            for run in plan(args)
        ]

    def noted(run, args, bar):
        if run.results is None:
            started.append(run.row)
        train(run, args, bar)

    monkeypatch.setattr(tool, "plan", planned)
    monkeypatch.setattr(tool, "train", noted)
    return started, failing


def test_commands_train_every_row_with_every_seed(tool, tmp_path):
    args = tool.parse_args(["table4", "--small", "--seeds", "2", "--output", str(tmp_path)])
    runs = tool.plan(args)
    rows = ["table4_without", "table4_2x2", "table4_3x3"]
    assert [run.row for run in runs] == rows * 2
    train_net = load_script("train_net.py")
    for run in runs:
        for command, evaluates in zip(run.commands, (False, True), strict=True):
            assert command[0] == "train_net.py"
            parsed = train_net.parse_args(command[1:])
            assert parsed.resume and parsed.eval_only == evaluates
            assert parsed.config_file == f"configs/ablations/small/{run.row}.yaml"
    assert len({run.folder for run in runs}) == 6
    args.table = "table3"
    assert tool.plan(args)[3].folder == runs[0].folder  # one model of two tables


def test_what_is_done_is_not_run_again(tool, stand_in, tmp_path, capsys):
    started, failing = stand_in
    failing.add("table4_3x3")
    arguments = ["table4", "--small", "--output", str(tmp_path / "out")]
    assert tool.main(arguments) == 1
    said = capsys.readouterr().err
    assert "The run of table4_3x3 ended with status 1: the disk is full" in said
    assert "output.txt" in said
    failing.clear()
    started.clear()
    assert tool.main(arguments) == 0
    assert started == ["table4_3x3"]
    assert "| 2 x 2 | 40.0 | 30.0 | 50.0 | 31.0 | 1 | 43.0 |" in capsys.readouterr().out
    written = (tmp_path / "out" / "table4.json").read_text()
    content = json.loads(written)
    assert str(tmp_path) not in written and "IoU-dog" not in written
    assert [run["results"] for run in content["runs"]] == [RESULTS] * 3
    assert len({run["config_hash"] for run in content["runs"]}) == 3
    # The models may go.
    started.clear()
    shutil.rmtree(tmp_path / "out" / "models")
    assert tool.main(arguments) == 0
    assert started == []
    assert json.loads((tmp_path / "out" / "table4.json").read_text()) == content
    # One model of two tables.
    tables = tool.parse_args(["table3", *arguments[1:]])
    assert [run.row for run in tool.plan(tables) if run.results] == ["table3_patch"]


def test_progress_is_counted_in_steps(tool, tmp_path):
    run = tool.Run("row", "", ([], []), tmp_path, "", 4)
    assert run.progress == 0
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n{"iteration": 2}\n')
    assert run.progress == 2
    (tmp_path / "results.json").write_text('{"results": {}}')
    assert run.progress == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9"], "invalid choice: 'table9'"),
        (["table5", "--small"], "table5 has no small setting"),
        (["additions"], "additions is small only; add --small"),
        (["table3", "--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_wrong_commands_are_refused(tool, capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.parse_args(arguments)
    assert message in capsys.readouterr().err


@pytest.fixture
def clipart_again():
    """Registers the clip-art datasets anew behind a test."""
    yield
    register_clipart(os.environ.get("DETECTRON2_DATASETS", DEFAULT_ROOT))


@pytest.mark.slow
def test_a_row_is_trained_and_evaluated(monkeypatch, tmp_path, clipart_again):
    tool = load_script("tools/reproduce.py")
    scenes = tool.BenchmarkSettings(0, {"train": 8, "val": 4, "val_unseen": 0}, num_kinds=12)
    monkeypatch.setattr(tool, "SMALL_SCENES", scenes)
    rows = tool.paper_tables()["table3"].rows[:1]
    table = dataclasses.replace(tool.paper_tables()["table3"], rows=rows)
    monkeypatch.setattr(tool, "paper_tables", lambda: {"table3": table})
    monkeypatch.setattr(sys, "argv", ["reproduce.py"])
    folders = ["--output", str(tmp_path / "out"), "--scenes", str(tmp_path / "scenes")]
    options = ["SOLVER.MAX_ITER", "2", "TEST.MAX_RESPONSE_TOKENS", "8", "MODEL.DEVICE", "cpu"]
    assert tool.main(["table3", "--small", *folders, *options]) == 0
    assert (
        "| vanilla stack, along `<SEG>` | 0.0 | 0.0 | 1 |"
        in (tmp_path / "out" / "table3.md").read_text()
    )
    (run,) = json.loads((tmp_path / "out" / "table3.json").read_text())["runs"]
    assert sum(mean["images"] for mean in run["by_count"]) == 4
    assert (tmp_path / "out" / "table3.png").stat().st_size > 0
