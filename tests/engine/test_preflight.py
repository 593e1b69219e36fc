"""What a job needs, looked at before anything is loaded."""

import argparse
import importlib.util
import json
import shutil

import psutil
import pytest
from mini_7b import write_mini_7b
from scripts import run_script

from rose_d2.config.read import read_config
from rose_d2.engine import preflight as module
from rose_d2.engine.preflight import Job, check_job, format_findings, preflight

CONFIG = "configs/rose_7b.yaml"
ROWS = (
    *("packages", "devices", "recipe", "language model", "tokenizer", "SAM", "text tower"),
    *("weights", "training data", "test data", "output folder", "disk", "CPU memory"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    return folder, write_mini_7b(folder)


@pytest.fixture
def cfg(written, tmp_path):
    """The 7B config on small folders, without data to test on."""
    folder, opts = written
    shutil.copytree(folder, tmp_path / "mini")
    own = [opt.replace(str(folder), str(tmp_path / "mini")) for opt in opts]
    cfg = read_config(CONFIG, [*own, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out")])
    cfg.DATASETS.TEST = ()
    return cfg


@pytest.fixture(autouse=True)
def present_data(monkeypatch):
    monkeypatch.setattr(module, "check_files", lambda name: None)


def problems(cfg, **job):
    found = preflight(Job(cfg, **job))
    return {finding.what: finding.problem for finding in found if finding.problem}


def test_every_row_is_there_and_nothing_is_made(cfg, tmp_path):
    found = preflight(Job(cfg))
    assert tuple(finding.what for finding in found) == ROWS
    assert not any(finding.problem for finding in found), format_findings(found)
    assert not (tmp_path / "out").exists()
    assert [row.split()[0] for row in format_findings(found).splitlines()] == ["ok"] * len(ROWS)
    # What evaluation does without is not asked for.
    evaluated = {finding.what: finding for finding in preflight(Job(cfg, trains=False))}
    assert "nothing to evaluate" in evaluated["weights"].problem
    assert set(ROWS) - evaluated.keys() == {"recipe", "text tower", "training data", "disk"}


def test_a_pretended_hub_name_without_hub_is_one_sentence_and_the_sizes_are_known(cfg, monkeypatch):
    asked = []

    def no_hub(*args, **kwargs):
        asked.append(args)
        raise ConnectionError("no route")

    monkeypatch.setattr(module.HfApi, "model_info", no_hub)
    large = read_config(CONFIG, ["OUTPUT_DIR", cfg.OUTPUT_DIR])
    found = problems(large, num_processes=8, num_local=8)
    assert "is not in Hugging Face's cache, and the hub cannot be" in found["language model"]
    assert len(asked) == 2  # the language model and SigLIP, each once
    assert "8.76 billion weights needs 8 GPUs" in found["devices"]
    assert "does not exist; download SAM's weights" in found["SAM"]


def test_fewer_gpus_than_processes(cfg):
    cfg.MODEL.DEVICE = "cuda"
    assert (
        "--num-gpus 8 is more than there are: use 2"
        in problems(cfg, num_local=8, num_processes=8, num_gpus_here=2)["devices"]
    )
    assert "devices" not in problems(cfg, num_local=2, num_processes=2, num_gpus_here=2)
    assert "needs 999 GPUs" in problems(cfg, num_local=999)["devices"]


def test_batches_that_cannot_be_shared(cfg):
    assert "16 cannot be shared by 3 processes" in problems(cfg, num_processes=3)["recipe"]


def test_parts_of_the_language_model(cfg, tmp_path):
    folder = tmp_path / "mini" / "lmm"
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-2.safetensors and 0 more" in problems(cfg)["language model"]
    (folder / "model-1.safetensors").unlink()
    assert "has no weights" in problems(cfg)["language model"]


def test_a_tokenizer_without_chat_template(cfg, tmp_path):
    folder = tmp_path / "mini" / "lmm"
    (folder / "chat_template.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "no chat template" in problems(cfg)["tokenizer"]


def test_a_sam_of_another_size(cfg):
    cfg.MODEL.MASK_HEAD.SAM_ARCH, cfg.MODEL.MASK_HEAD.IMAGE_SIZE = "vit_b", 1024
    assert "does not fit MODEL.MASK_HEAD.SAM_ARCH" in problems(cfg)["SAM"]


def test_a_text_tower_of_another_width(cfg):
    cfg.MODEL.PATCH_ANALYZER.SIGLIP_DIM = 1152
    assert "embeds text in 24 numbers" in problems(cfg)["text tower"]


def test_a_missing_package(cfg, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n in ("deepspeed", "peft") else find(n)
    )
    assert problems(cfg)["packages"] == "pip install deepspeed peft"


def test_disk_and_memory(cfg, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1))
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=10))
    found = problems(cfg)
    assert "lower SOLVER.CHECKPOINT_KEEP" in found["disk"]
    assert "fewer processes" in found["CPU memory"]


def test_the_size_of_a_checkpoint(cfg):
    job = Job(cfg)
    (row,) = [finding for finding in preflight(job) if finding.what == "disk"]
    trained = [p for p in job.model.parameters() if p.requires_grad]
    size = sum(p.numel() * (12 + p.element_size()) for p in trained)
    assert f"5 checkpoints of {size / 1e9:.2f} GB" in row.found
    assert {p.device.type for p in job.model.parameters()} == {"meta"}


def test_an_output_folder_that_cannot_be_written(cfg, tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(module.tempfile, "TemporaryFile", refuse)
    assert "Permission denied" in problems(cfg)["output folder"]


def test_missing_data(cfg, monkeypatch):
    def missing(name):
        raise FileNotFoundError(f"The dataset {name!r} is not complete.")

    monkeypatch.setattr(module, "check_files", missing)
    cfg.DATASETS.TEST = ("nothing_val",)
    found = problems(cfg)
    assert found["training data"] == "The dataset 'ade20k_sem_seg_train' is not complete."
    assert "not registered" in found["test data"]


def test_a_job_that_cannot_start_says_the_first_reason(cfg, tmp_path, capsys):
    (tmp_path / "mini" / "sam.pth").unlink()
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    args = argparse.Namespace(
        config_file=str(path), opts=[], num_gpus=1, num_machines=1, eval_only=False
    )
    args.custom_coco = args.custom_labels = None
    with pytest.raises(SystemExit, match="the job cannot start. SAM: .*sam.pth does not exist"):
        check_job(args)
    assert "PROBLEM  SAM" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("model", "status"), [("rose_tiny", 0), ("rose_7b", 1)])
def test_check_does_only_that(tmp_path, model, status):
    """Without a GPU 7B cannot start at all; the tiny model can on the shipped data, if none."""
    opts = ["DATASETS.TRAIN", "()"] if status else ["MODEL.WEIGHTS", "checkpoints/rose_tiny"]
    said = run_script(
        "train_net.py",
        *("--config-file", f"configs/{model}.yaml", "--check", "--eval-only"),
        *("DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "out", *opts),
        output=tmp_path / "output.txt",
        status=status,
        env={"HF_HUB_OFFLINE": 1},
    )
    assert "CPU memory" in said
    assert not (tmp_path / "out").exists()
