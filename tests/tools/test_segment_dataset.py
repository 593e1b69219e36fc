"""Segmenting a folder with Ray on this machine: two workers, one of which is killed in mid-run."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image
from scripts import ROOT

from rose_d2 import Results
from rose_d2.structures.segments import Segment

pytest.importorskip("pyarrow", reason="the extra bulk is not installed")

from pyarrow.parquet import read_table  # noqa: E402

from rose_d2.predictor import parquet  # noqa: E402


def result(path, count=1):
    """Results of an image of 12 x 16 with `count` squares."""
    segments = []
    for i in range(count):
        mask = np.zeros((12, 16), dtype=bool)
        mask[i : i + 4, 2:6] = True
        segments.append(Segment(mask, "dög", 0.75, 0.5 if i else None, bool(i)))
    return Results(np.zeros((12, 16, 3), np.uint8), tuple(segments), path=path)


def test_rows_come_back_as_results_and_as_coco(tmp_path):
    rows = [parquet.image_row(result(name, count), name) for name, count in (("a", 2), ("b", 0))]
    parquet.write_rows(tmp_path, parquet.DONE, rows)
    parquet.write_rows(tmp_path, parquet.DONE, rows[:1])  # a batch that was done again
    parquet.write_rows(tmp_path, parquet.FAILED, [{"path": "c", "reason": "empty"}])
    assert parquet.write_rows(tmp_path, parquet.DONE, []) is None
    first, second = parquet.read_results(tmp_path)
    assert first.names == ["dög", "dög"] and (first.masks == result("a", 2).masks).all()
    assert [s.name_score for s in first] == [None, 0.5] and first.is_thing.tolist() == [False, True]
    assert second.path == "b" and len(second) == 0
    assert parquet.finished(tmp_path) == {"a", "b"}
    assert list(parquet.read_rows(tmp_path, parquet.FAILED)) == [{"path": "c", "reason": "empty"}]
    counts = parquet.to_coco(tmp_path, tmp_path / "coco.json")
    assert counts == {"images": 2, "annotations": 2, "categories": 1}
    assert json.loads((tmp_path / "coco.json").read_text())["images"][0]["file_name"] == "a"


def test_a_folder_of_another_run_is_refused(tmp_path):
    parquet.begin_run(tmp_path, {"task": None})
    parquet.begin_run(tmp_path, {"task": None})
    with pytest.raises(ValueError, match=r"other settings \(task\)"):
        parquet.begin_run(tmp_path, {"task": "instance"})


def workers(process_id):
    """The actors below a process that have their model."""
    below = psutil.Process(process_id).children(recursive=True)
    return [child for child in below if " ".join(child.cmdline()).startswith("ray::MapWorker")]


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_does_nothing_twice(tmp_path):
    pytest.importorskip("ray.data", reason="the extra bulk is not installed")
    images = tmp_path / "in" / "deeper"
    images.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for i in range(24):
        pixels = noise.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i:02}.png")
    (images / "broken.png").write_bytes(b"no picture")
    (images / "notes.txt").write_text("not asked for")
    output = tmp_path / "out"
    command = [sys.executable, "tools/segment_dataset.py", "--input", str(tmp_path / "in")]
    command += ["--output", str(output), "--workers", "2", "--batch-size", "2", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log.txt", "w") as log:
        run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 400
            while len(list(output.glob("part-*"))) < 2 and run.poll() is None:
                assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()[-3000:]
                time.sleep(0.05)
            alive = workers(run.pid)
            assert len(alive) == 2
            alive[0].kill()
            assert run.wait(500) == 1, "one image is broken"
        finally:
            run.kill()
    printed = (tmp_path / "log.txt").read_text()
    assert "24 images are in" in printed and "1 failed" in printed
    tables = [read_table(file, columns=["path"]) for file in output.glob("part-*.parquet")]
    paths = [path for table in tables for path in table["path"].to_pylist()]
    assert sorted(paths) == sorted(str(images / f"{i:02}.png") for i in range(24))
    (failed,) = parquet.read_rows(output, parquet.FAILED)
    assert failed["path"].endswith("broken.png") and "not an image" in failed["reason"]
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "25 images, 24 are done already" in again.stdout and again.returncode == 1
