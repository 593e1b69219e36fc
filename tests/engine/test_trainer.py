import argparse
import contextlib
import json
import multiprocessing
import os

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from safetensors.torch import load_file
from scripts import finish_script, free_port, start_script
from toy_training import ToyROSE, ToyTrainer, seed_all, toy_config

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.config.fingerprint import config_hash, file_sha256, library_versions
from rose_d2.engine import trainer as defaults
from rose_d2.engine.non_finite import dumped_ranks
from rose_d2.engine.trainer import RoseTrainer, build_health_hooks, evaluate_weights
from rose_d2.engine.watchdog import WatchdogHook
from rose_d2.files import FolderLock

CALLS = []


class Stopped(Exception):
    """Stands for a killed process."""


def train(cfg, *, resume=False, stop_after=None, seed=None):
    """Train; returns iteration -> losses. `stop_after` raises in that iteration."""
    seed_all(cfg.SEED if seed is None else seed)
    trainer = ToyTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    curve = {}
    run_step = trainer.run_step

    def recorded_step():
        if trainer.iter == stop_after:
            raise Stopped
        run_step()
        latest = trainer.storage.latest()
        curve[trainer.iter] = {name: latest[name][0] for name in ("loss_text", "loss_mask_dice")}
        curve[trainer.iter]["lr"] = trainer.optimizer.param_groups[0]["lr"]

    trainer.run_step = recorded_step
    with contextlib.suppress(Stopped):
        trainer.train()
    return curve


def final_weights(output_dir):
    return load_file(output_dir / "model_final" / "model.safetensors")


def test_quantised_weights_do_not_train(tmp_path):
    with pytest.raises(ValueError, match="QUANTIZE is int8, which is for inference"):
        RoseTrainer(toy_config(tmp_path, "MODEL.LMM.QUANTIZE", "int8"))


def test_resume_continues_the_same_curve(tmp_path):
    opts = ("SOLVER.ACCUMULATION_STEPS", 2, "TEST.EVAL_PERIOD", 5)
    whole = train(toy_config(tmp_path / "whole", *opts))
    cfg = toy_config(tmp_path / "stopped", *opts)
    first = train(cfg, stop_after=7)
    # Another seed: what the resumed process draws while starting must not matter.
    rest = train(cfg, resume=True, seed=99)
    assert sorted(first) == list(range(7)) and sorted(rest) == list(range(5, 12))
    assert first | rest == whole
    for name, tensor in final_weights(tmp_path / "whole").items():
        assert torch.equal(final_weights(tmp_path / "stopped")[name], tensor), name


def test_evaluation_does_not_change_the_curve(tmp_path):
    without = train(toy_config(tmp_path / "without"))
    often = train(toy_config(tmp_path / "often", "TEST.EVAL_PERIOD", 2))
    assert often == without
    assert without[11] != without[10]


def test_a_second_start_without_resume_begins_anew(tmp_path):
    cfg = toy_config(tmp_path)
    assert train(cfg) == train(cfg)


def test_metrics_and_checkpoints_are_written(tmp_path):
    train(toy_config(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.CHECKPOINT_KEEP", 2))
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    by_iteration = {}
    for row in rows:
        by_iteration.setdefault(row["iteration"], {}).update(row)
    assert {"loss_text", "total_loss", "grad_norm", "lr", "data_time"} <= set(by_iteration[4])
    assert by_iteration[12]["toy/metric"] == 1.0
    names = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert names == ["model_0000008", "model_0000011", "model_final"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final"
    assert list(tmp_path.glob("events.out.tfevents*"))


def make_args(tmp_path, *opts, resume=False, eval_only=False):
    config_file = tmp_path / "toy.yaml"
    config_file.write_text("MODEL: {META_ARCHITECTURE: ToyROSE}\n")
    return argparse.Namespace(
        config_file=str(config_file),
        opts=["OUTPUT_DIR", str(tmp_path / "out"), *opts],
        resume=resume,
        eval_only=eval_only,
    )


def test_setup_takes_the_cpu_where_there_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = defaults.setup(make_args(tmp_path, "MODEL.DEVICE", "cuda"))
    assert cfg.MODEL.DEVICE == "cpu" and cfg.is_frozen()


def test_processes_share_cores_and_start_workers_cheaply(tmp_path, monkeypatch):
    threads, method = torch.get_num_threads(), multiprocessing.get_start_method()
    monkeypatch.setattr(defaults.comm, "get_local_size", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    try:
        multiprocessing.set_start_method("spawn", force=True)
        defaults.setup(make_args(tmp_path, "MODEL.DEVICE", "cpu"))
        assert torch.get_num_threads() == 3
        assert multiprocessing.get_start_method() == method
    finally:
        torch.set_num_threads(threads)
        multiprocessing.set_start_method(method, force=True)


def _hold(folder, held, free):
    lock = FolderLock(folder, purpose="OUTPUT_DIR")
    held.set()
    free.wait()
    lock.release()


@pytest.mark.parametrize("eval_only", [False, True])
def test_two_programs_in_one_folder_are_refused(tmp_path, eval_only):
    context = multiprocessing.get_context("fork")
    held, free = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", held, free))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(ValueError, match=f"in use by process {other.pid} on"):
            defaults.setup(make_args(tmp_path, eval_only=eval_only))
        assert os.listdir(tmp_path / "out") == [".lock"]
    finally:
        free.set()
        other.join()


def test_only_a_new_training_is_refused_among_checkpoints(tmp_path):
    train(toy_config(tmp_path / "out"))
    with pytest.raises(ValueError, match="has checkpoints of an earlier run.*--overwrite"):
        defaults.setup(make_args(tmp_path))
    for options in ({"resume": True}, {"eval_only": True}):
        defaults.setup(make_args(tmp_path, **options))
    args = make_args(tmp_path)
    args.overwrite = True
    defaults.setup(args)


def test_setup_draws_a_seed_once_per_run(tmp_path):
    drawn = defaults.setup(make_args(tmp_path, "SEED", "-1")).SEED
    assert drawn >= 0
    assert drawn == defaults.setup(make_args(tmp_path, "SEED", "-1", resume=True)).SEED
    assert defaults.setup(make_args(tmp_path, "SEED", "5")).SEED == 5


def test_training_refuses_an_unknown_test_dataset_at_once(tmp_path):
    with pytest.raises(ValueError, match="'nothing', which is not registered"):
        ToyTrainer(toy_config(tmp_path, "DATASETS.TEST", ("nothing",)))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which health_jobs.py has run."""
    folder = tmp_path_factory.mktemp("two")
    port = free_port()
    outputs = [folder / f"output_{rank}.txt" for rank in (0, 1)]
    processes = [
        start_script("tests/helpers/health_jobs.py", folder, rank, port, output=output)
        for rank, output in enumerate(outputs)
    ]
    for process, output in zip(processes, outputs, strict=True):
        status, printed = finish_script(process, output)
        assert status == 0, printed
    return folder


@pytest.mark.slow
def test_all_ranks_skip_and_stop_together(two_processes):
    decisions = [json.loads((two_processes / f"guard_{r}.json").read_text()) for r in (0, 1)]
    assert decisions[0] == decisions[1]
    passed, skipped, message = decisions[0]
    assert (passed, skipped) == (False, True)
    assert "at iteration 2: loss_text = nan on rank 1, images 000001.jpg." in message
    folder = two_processes / "non_finite" / "iter_0000002"
    # The images of the rank at fault are enough, and the weights are there once.
    assert dumped_ranks(folder) == [1]
    assert (folder / "model.safetensors").is_file()


@pytest.mark.slow
def test_watchdog_names_the_rank_without_data(two_processes):
    logs = [(two_processes / f"log_{rank}.txt").read_text() for rank in (0, 1)]
    # On a busy machine there may be more than this stall.
    reports = [line for line in logs[0].splitlines() if "waiting for data" in line]
    report = next(line for line in reports if "in iteration 4" in line)
    assert "Stalled: rank 1 " in report
    assert "health_jobs.py" in report and "in stands_still" in report
    assert "Ranks that wait for it: 1." in report
    # The whole stack is in the log of the process it is about.
    assert "in stands_still" in logs[1]


@pytest.mark.slow
def test_metrics_cover_both_ranks(two_processes):
    lines = (two_processes / "metrics.json").read_text().splitlines()
    row = next(row for row in map(json.loads, lines) if row["iteration"] == 2)
    # Iterations 0 to 2 have images 0 to 11, of each four the first two on rank 0.
    assert row["task/semantic/text"] == pytest.approx((0 + 1 + 4 + 5 + 8 + 9) / 6)
    assert row["task/referring/text"] == pytest.approx((2 + 3 + 6 + 7 + 10 + 11) / 6)
    assert row["task/semantic/images"] == row["task/referring/images"] == 6
    assert {"images_per_second", "mfu", "host_memory_gib", "data_time", "eta_seconds"} <= set(row)


def test_watchdog_can_be_left_out(tmp_path):
    def watchdogs(seconds):
        cfg = toy_config(tmp_path, "SOLVER.WATCHDOG_SECONDS", seconds)
        hooks = build_health_hooks(cfg, engine=None, model=ToyROSE())
        return [hook for hook in hooks if isinstance(hook, WatchdogHook)]

    assert len(watchdogs(60.0)) == 1 and watchdogs(0.0) == []
    with pytest.raises(ValueError, match=r"WATCHDOG_SECONDS is -1\.0"):
        watchdogs(-1.0)


@pytest.fixture
def toy_evaluation(monkeypatch):
    """Makes `RoseTrainer.test` return fixed numbers, and registers a dataset of three items."""
    numbers = {"segm": {"AP": 41.5, "APs": float("nan")}}

    def test(cls, cfg, model, **options):
        CALLS.append(options)
        return numbers

    monkeypatch.setattr(RoseTrainer, "test", classmethod(test))
    DatasetCatalog.register("toy_val", lambda: [{}] * 3)
    MetadataCatalog.get("toy_val").evaluator_type = "coco"
    yield
    DatasetCatalog.remove("toy_val")
    MetadataCatalog.remove("toy_val")
    CALLS.clear()


def test_results_say_where_they_come_from(tmp_path, toy_evaluation):
    RoseCheckpointer(ToyROSE(), str(tmp_path)).save("model_final")
    cfg = toy_config(
        tmp_path / "out", "DATASETS.TEST", ("toy_val",), "MODEL.WEIGHTS", tmp_path / "model_final"
    )
    evaluate_weights(cfg, overwrite_predictions=True)
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["results"] == {"toy_val": {"segm": {"AP": 41.5, "APs": None}}}
    assert report["dataset_sizes"] == {"toy_val": 3}
    path, sha256 = CALLS[0]["weights"]
    assert path.endswith("model_final/model.safetensors") and sha256 == file_sha256(path)
    assert report["checkpoint"] == {"path": path, "sha256": sha256}
    assert CALLS[0]["overwrite_predictions"]
    assert report["config_hash"] == config_hash(cfg)
    assert report["versions"] == library_versions()
    assert "41.5" in (tmp_path / "out" / "report.md").read_text()


def test_evaluation_without_weights_is_refused(tmp_path, toy_evaluation):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS"):
        evaluate_weights(toy_config(tmp_path, "DATASETS.TEST", ("toy_val",)))
    assert not CALLS


def test_missing_weights_are_refused_before_the_model_is_built(tmp_path, toy_evaluation):
    cfg = toy_config(tmp_path, "DATASETS.TEST", ("toy_val",), "MODEL.WEIGHTS", "nowhere")
    cfg.MODEL.META_ARCHITECTURE = "NoSuchModel"
    with pytest.raises(FileNotFoundError, match="No weights at nowhere"):
        evaluate_weights(cfg)


def test_weights_that_do_not_fit_are_never_evaluated(tmp_path, toy_evaluation):
    RoseCheckpointer(ToyROSE(base="frozen"), str(tmp_path)).save("partial")
    cfg = toy_config(
        tmp_path / "out", "DATASETS.TEST", ("toy_val",), "MODEL.WEIGHTS", tmp_path / "partial"
    )
    with pytest.raises(ValueError, match=r"missing: frozen\.weight"):
        evaluate_weights(cfg)
    assert not CALLS
