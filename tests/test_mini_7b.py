"""configs/rose_7b.yaml with nothing but sizes and paths replaced, from its folders to its export.

LLaVA-OneVision, SigLIP and SAM in their official layouts, the paper's datasets in miniature,
bfloat16, DeepSpeed ZeRO-2; two processes on the CPU.
"""

import json

import pytest
import torch
from mini_7b import write_mini_7b
from scripts import run_script

from rose_d2.config.read import read_config

CONFIG = "configs/rose_7b.yaml"
PREPARE = ("ade20k", "coco_stuff", "mapillary_vistas", "refcoco")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mini_7b")


@pytest.fixture(scope="module")
def opts(folder):
    """KEY VALUE pairs over the 7B config."""
    sizes = [
        "SOLVER.IMS_PER_BATCH",
        "2",
        "SOLVER.ACCUMULATION_STEPS",
        "2",
        "SOLVER.LOG_PERIOD",
        "1",
    ]
    schedule = ["SOLVER.MAX_ITER", "20", "SOLVER.WARMUP_ITERS", "4"]
    loader = ["SOLVER.CHECKPOINT_PERIOD", "8", "DATALOADER.NUM_WORKERS", "0", "SEED", "1"]
    here = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder / "out")]
    return [*write_mini_7b(folder), *sizes, *schedule, *loader, *here]


@pytest.fixture(scope="module")
def run(folder):
    """Run a script on the prepared miniatures of all datasets."""
    data, output = folder / "data", folder / "output.txt"

    def call(*command, **options):
        env = {"DETECTRON2_DATASETS": data, "DS_ACCELERATOR": "cpu"}
        return run_script(*command, output=output, env=env, **options)

    call("datasets/prepare_miniatures.py", "--root", data)
    for name in PREPARE:
        call(f"datasets/prepare_{name}.py", "--num-workers", 1)
    return call


@pytest.fixture(scope="module")
def trained(run, opts, folder):
    """The run's folder after 20 steps, stopped after 8 and resumed, and what it said."""
    two = ("train_net.py", "--config-file", CONFIG, "--num-gpus", 2)
    said = [run(*two, *opts, "SOLVER.MAX_ITER", 8, fork=True)]
    said.append(run(*two, "--resume", *opts, fork=True))
    return folder / "out", said


def test_the_config_differs_in_sizes_and_paths_only(opts):
    mini, large = read_config(CONFIG, opts), read_config(CONFIG)
    assert mini.MODEL.LORA == large.MODEL.LORA and mini.MODEL.TRAINABLE == large.MODEL.TRAINABLE
    assert mini.DATASETS == large.DATASETS and mini.INPUT == large.INPUT
    assert mini.MODEL.LMM.DTYPE == "bfloat16" and mini.MODEL.LMM.GRADIENT_CHECKPOINTING
    assert mini.SOLVER.ENGINE == "deepspeed" and mini.SOLVER.DEEPSPEED.ZERO_STAGE == 2
    assert mini.SOLVER.AMP.ENABLED


def test_it_trains_twenty_steps_and_resumes(trained):
    folder, (first, second) = trained
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}
    assert sorted(losses) == list(range(20))
    # Random weights of 32 numbers a token learn the frequent words, no more.
    assert sum(list(losses.values())[-5:]) < sum(list(losses.values())[:5])
    assert "Starting training from iteration 8" in second
    assert (folder / "model_final" / "model.safetensors").is_file()
    for said in (first, second):
        # By one process, before the language model is there.
        assert said.count("class names with") <= 1
        assert "UNEXPECTED" not in said  # the vision tower of the SigLIP folder
    assert first.index("class names with") < first.index("parameters")


def test_it_evaluates_every_benchmark_of_the_paper_and_so_does_its_export(
    run, opts, trained, folder
):
    weights = ("MODEL.WEIGHTS", folder / "out" / "model_final")
    eval_only = ("train_net.py", "--config-file", CONFIG, "--eval-only")
    few = ("DATASETS.TEST", "('ade20k_sem_seg_val', 'coco_2017_val', 'refcoco_unc_val')")
    run(*eval_only, *opts, *weights, "OUTPUT_DIR", folder / "evaluated")
    results = json.loads((folder / "evaluated" / "results.json").read_text())["results"]
    assert set(results) == set(read_config(CONFIG).DATASETS.TEST)
    exported = folder / "exported"
    arguments = ("--weights", folder / "out" / "model_final", "--output", exported)
    said = run("tools/export_checkpoint.py", "--config-file", CONFIG, *arguments, "--opts", *opts)
    assert "same token_logits after loading it again" in said
    assert torch.load(exported / "sam.pth", weights_only=True)
    own = ("train_net.py", "--config-file", exported / "config.yaml", "--eval-only")
    run(*own, "MODEL.WEIGHTS", exported, "OUTPUT_DIR", folder / "again", *few)
    again = json.loads((folder / "again" / "results.json").read_text())["results"]
    assert len(again) == 3
