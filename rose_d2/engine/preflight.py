"""What a job needs, looked at before any weight is loaded: one table, one row for each thing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from huggingface_hub import HfApi, try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.config.read import read_config
from rose_d2.data.datasets.custom import use_custom_data
from rose_d2.data.datasets.registration import check_files
from rose_d2.data.mixture import training_weights
from rose_d2.engine.deepspeed_engine import deepspeed_config
from rose_d2.engine.evaluate import check_test_datasets
from rose_d2.engine.launch import program, started_by_launcher
from rose_d2.modeling.backbone.llava_builders import check_source
from rose_d2.modeling.mask_head import check_sam_checkpoint
from rose_d2.prompts.conversation import Conversation, encode_image_prompt
from rose_d2.prompts.tokenizer import build_tokenizer
from rose_d2.vocabulary.text_embeddings import load_text_tokenizer

GB = 1e9
# A model of more parameters is trained on the CPU only where the config asks for it.
LARGE_MODEL = 300_000_000
# Of each trained number a checkpoint has AdamW's two moments and a float32 copy, 4 bytes each.
_STATE_BYTES = 12
_HUB_SECONDS = 10.0
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        what: that was looked at.
        found: what is there, in a few words.
        problem: what is wrong with it and what to do; "" where nothing is.
    """

    what: str
    found: str
    problem: str = ""


@dataclass(frozen=True)
class Job:
    """What is to run where.

    Attributes:
        cfg: the full config.
        num_processes: of the whole job, one per GPU.
        num_local: of them on this machine.
        trains: False: evaluation only.
        num_gpus_here: GPUs of this machine.
    """

    cfg: CfgNode
    num_processes: int = 1
    num_local: int = 1
    trains: bool = True
    num_gpus_here: int = 0
    _found: dict[str, str | ValueError] = field(default_factory=dict)

    @cached_property
    def language_model(self) -> PreTrainedConfig | None:
        """The config of MODEL.LMM.PRETRAINED; None where the sizes are in the config."""
        source = self.cfg.MODEL.LMM.PRETRAINED
        if not source:
            return None
        check_source(self.cfg)
        self.find(source)
        return AutoConfig.from_pretrained(source)

    def find(self, source: str) -> str:
        """Do `find_pretrained`, once for each source: the hub may take long to be out of reach.

        Raises:
            ValueError: see there.
        """
        if source not in self._found:
            try:
                self._found[source] = find_pretrained(source)
            except ValueError as error:
                self._found[source] = error
        found = self._found[source]
        if isinstance(found, ValueError):
            raise found
        return found

    @cached_property
    def model(self) -> nn.Module:
        """The model on the device without memory, in its true size.

        Where the language model is nowhere, of the sizes that the config has for it.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        lmm = cfg.MODEL.LMM
        if lmm.PRETRAINED:
            self._describe(lmm)
        lmm.PRETRAINED = cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT = ""
        with torch.device("meta"):
            return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)

    def _describe(self, lmm: CfgNode) -> None:
        try:
            language_model = self.language_model
        except (ValueError, OSError):
            if not lmm.TEXT_CONFIG:
                raise
            lmm.TOKENIZER = "tiny"
            return
        lmm.TOKENIZER = lmm.TOKENIZER or lmm.PRETRAINED
        lmm.VISION_CONFIG = _sizes(language_model.vision_config)
        lmm.TEXT_CONFIG = _sizes(language_model.text_config)


def preflight(job: Job) -> list[Finding]:
    """Look at everything a job needs; nothing is loaded but configs and tokenizers.

    Args:
        job: what is to run.

    Returns:
        The rows of the table, those without a problem too.
    """
    looks: list[tuple[str, Callable[[Job], Finding]]] = [
        ("packages", _packages),
        ("devices", _devices),
        ("recipe", _recipe),
        ("language model", _language_model),
        ("tokenizer", _tokenizer),
        ("SAM", _sam),
        ("text tower", _text_tower),
        ("weights", _weights),
        ("training data", _training_data),
        ("test data", _test_data),
        ("output folder", _output_folder),
        ("disk", _disk),
        ("CPU memory", _memory),
    ]
    only_training = ("recipe", "text tower", "training data", "disk")
    return [
        _look(what, look, job) for what, look in looks if job.trains or what not in only_training
    ]


def _look(what: str, look: Callable[[Job], Finding], job: Job) -> Finding:
    """One row; what cannot be looked at is a problem, never an end."""
    try:
        return look(job)
    except Exception as error:  # from transformers, torch, huggingface_hub: all speak of the row
        text = " ".join(str(error).split())
        return Finding(what, "", text or type(error).__name__)


def format_findings(findings: list[Finding]) -> str:
    """The table, one line for each row and one more for each problem."""
    lines = []
    for finding in findings:
        mark = "PROBLEM" if finding.problem else "ok"
        lines.append(f"{mark:8} {finding.what:15} {finding.found}".rstrip())
        if finding.problem:
            lines.append(f"{'':24} {finding.problem}")
    return "\n".join(lines)


def check_job(args: argparse.Namespace) -> None:
    """Look at all that a command line needs and print the table.

    Args:
        args: of `train_net.py`.

    Raises:
        SystemExit: something is missing.
    """
    cfg = read_config(args.config_file, args.opts)
    use_custom_data(cfg, args)
    place = started_by_launcher()
    local = place.local_size if place else max(1, args.num_gpus)
    everywhere = place.world_size if place else local * args.num_machines
    gpus = torch.cuda.device_count()
    if cfg.MODEL.DEVICE == "cuda" and not gpus and args.eval_only and everywhere == 1:
        cfg.MODEL.DEVICE = "cpu"
    findings = preflight(Job(cfg, everywhere, local, not args.eval_only, gpus))
    sys.stdout.write(f"{format_findings(findings)}\n")
    sys.stdout.flush()
    missing = [finding for finding in findings if finding.problem]
    if missing:
        first = f"{missing[0].what}: {missing[0].problem.rstrip('.')}."
        more = f" And {len(missing) - 1} more, see the table." if len(missing) > 1 else ""
        raise SystemExit(f"{program()}: the job cannot start. {first}{more}")


def _packages(job: Job) -> Finding:
    needed = {"torch", "transformers", "segment_anything"}
    if job.trains and job.cfg.SOLVER.ENGINE == "deepspeed":
        needed.add("deepspeed")
    if job.cfg.MODEL.SIGLIP_TEXT.SOURCE != "ngram":
        needed.add("sentencepiece")
    if job.cfg.MODEL.LMM.ATTENTION == "flash_attention_2":
        needed.add("flash_attn")
    if job.cfg.MODEL.LORA.ENABLED:
        needed.add("peft")
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    advice = f"pip install {' '.join(missing).replace('_', '-')}" if missing else ""
    return Finding("packages", ", ".join(sorted(needed)), advice)


def _devices(job: Job) -> Finding:
    wanted, there = job.num_local, job.num_gpus_here
    if job.cfg.MODEL.DEVICE == "cpu":
        return Finding("devices", f"{wanted} processes on the CPU, as MODEL.DEVICE says")
    found = f"{there} GPUs for {wanted} processes"
    if there >= wanted:
        return Finding("devices", found)
    if there:
        return Finding("devices", found, f"--num-gpus {wanted} is more than there are: use {there}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    size = sum(p.numel() for p in job.model.parameters())
    if wanted <= (cores or 1) and (size <= LARGE_MODEL or not job.trains):
        return Finding("devices", f"no GPU: {wanted} processes on {cores} CPU cores")
    return Finding(
        "devices",
        f"no GPU here, {cores} CPU cores",
        f"--num-gpus {wanted} of a model of {size / 1e9:.2f} billion weights needs {wanted} GPUs; "
        "see whether PyTorch finds them (nvidia-smi, torch.cuda.is_available()), or say "
        "MODEL.DEVICE cpu to use the CPU all the same",
    )


def _recipe(job: Job) -> Finding:
    solver = job.cfg.SOLVER
    if solver.IMS_PER_BATCH % job.num_processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} cannot be shared by "
            f"{job.num_processes} processes: use a multiple."
        )
    if solver.ENGINE == "deepspeed":
        deepspeed_config(job.cfg, job.num_processes)
    images = solver.IMS_PER_BATCH * solver.ACCUMULATION_STEPS
    return Finding("recipe", f"{solver.ENGINE}, {images} images a step, {solver.MAX_ITER} steps")


def _language_model(job: Job) -> Finding:
    source = job.cfg.MODEL.LMM.PRETRAINED
    what = "language model"
    if not source:
        size = sum(p.numel() for p in job.model.backbone.parameters())
        return Finding(what, f"random weights, {size / 1e6:.1f} million")
    kind = job.language_model.model_type
    if kind != "llava_onevision":
        raise ValueError(f"{source} is a {kind}; ROSE's is a llava_onevision.")
    return Finding(what, f"{source}, {job.find(source)}")


def find_pretrained(source: str) -> str:
    """Where a Hugging Face model is: in a folder, in the cache or on the hub.

    Raises:
        ValueError: it is not whole, or nowhere.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        files = [file for pattern in _WEIGHTS for file in folder.glob(pattern)]
        if not files:
            raise ValueError(f"{source} has no weights (model.safetensors or its parts).")
        _check_parts(folder)
        return f"{sum(file.stat().st_size for file in files) / GB:.2f} GB"
    if isinstance(try_to_load_from_cache(source, "config.json"), str):
        return "in Hugging Face's cache"
    try:
        info = HfApi().model_info(source, timeout=_HUB_SECONDS, files_metadata=True)
    except Exception as error:
        raise ValueError(
            f"{source} is no folder, is not in Hugging Face's cache, and the hub cannot be asked "
            f"({type(error).__name__}): download it, or name the folder where it is."
        ) from error
    size = sum(file.size or 0 for file in info.siblings or ())
    return f"to be downloaded, {size / GB:.1f} GB"


def _check_parts(folder: Path) -> None:
    """Refuse a folder whose index names files that are not there."""
    for index in folder.glob("*.index.json"):
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        absent = sorted(name for name in named if not (folder / name).is_file())
        if absent:
            raise ValueError(f"{folder} lacks {absent[0]} and {len(absent) - 1} more parts.")


def _tokenizer(job: Job) -> Finding:
    lmm = job.cfg.MODEL.LMM
    if not lmm.TOKENIZER:
        job.find(lmm.PRETRAINED)
    tokenizer = build_tokenizer(lmm.TOKENIZER or lmm.PRETRAINED)
    prompt = encode_image_prompt(tokenizer, Conversation("Segment everything.", "None."))
    rows = job.model.backbone.model.config.text_config.vocab_size
    if len(tokenizer) > rows:
        raise ValueError(f"It knows {len(tokenizer)} tokens but the language model embeds {rows}.")
    words = len(prompt.before + prompt.after)
    return Finding("tokenizer", f"{len(tokenizer)} tokens, {words} around an image and 2 words")


def _sam(job: Job) -> Finding:
    head = job.cfg.MODEL.MASK_HEAD
    if not head.SAM_CHECKPOINT:
        return Finding("SAM", f"{head.SAM_ARCH} with random weights")
    check_sam_checkpoint(job.cfg)
    size = Path(head.SAM_CHECKPOINT).expanduser().stat().st_size
    return Finding("SAM", f"{head.SAM_CHECKPOINT}, {size / GB:.2f} GB")


def _text_tower(job: Job) -> Finding:
    source, dim = job.cfg.MODEL.SIGLIP_TEXT.SOURCE, job.cfg.MODEL.PATCH_ANALYZER.SIGLIP_DIM
    if source == "ngram":
        return Finding("text tower", "none: hashed n-grams of the names")
    place = job.find(source)
    text = AutoConfig.from_pretrained(source).get_text_config()
    width = getattr(text, "projection_size", None) or text.hidden_size
    if width != dim:
        raise ValueError(
            f"{source} embeds text in {width} numbers, MODEL.PATCH_ANALYZER.SIGLIP_DIM is {dim}."
        )
    load_text_tokenizer(source)
    return Finding("text tower", f"{source}, {place}")


def _weights(job: Job) -> Finding:
    path = job.cfg.MODEL.WEIGHTS
    if not path:
        if not job.trains and not RoseCheckpointer(None, job.cfg.OUTPUT_DIR).has_checkpoint():
            raise ValueError(
                "MODEL.WEIGHTS is empty (a language model alone counts as that) and OUTPUT_DIR has "
                "no checkpoint, so there is nothing to evaluate: name a .safetensors file, a "
                "checkpoint or an exported folder."
            )
        return Finding("weights", "none named: from the bases, or from the last checkpoint")
    if "://" in path:
        return Finding("weights", f"{path}, to be downloaded")
    return Finding("weights", RoseCheckpointer(None, job.cfg.OUTPUT_DIR).find_weights(path))


def _training_data(job: Job) -> Finding:
    names = list(dict.fromkeys(view.dataset_name for view in training_weights(job.cfg)))
    for name in names:
        check_files(name)
    return Finding("training data", f"{len(names)} datasets in {len(job.cfg.DATASETS.TRAIN)} views")


def _test_data(job: Job) -> Finding:
    check_test_datasets(job.cfg.DATASETS.TEST)
    return Finding("test data", f"{len(job.cfg.DATASETS.TEST)} datasets")


def _output_folder(job: Job) -> Finding:
    place = _existing(Path(job.cfg.OUTPUT_DIR).expanduser().absolute())
    with tempfile.TemporaryFile(dir=place):
        return Finding("output folder", job.cfg.OUTPUT_DIR)


def _existing(path: Path) -> Path:
    return path if path.is_dir() else _existing(path.parent)


def _disk(job: Job) -> Finding:
    """Room for the checkpoints that are kept, one that is being written and the final one."""
    solver = job.cfg.SOLVER
    trained = [p for p in job.model.parameters() if p.requires_grad]
    one = sum(p.numel() * (p.element_size() + _STATE_BYTES) for p in trained)
    written = solver.MAX_ITER // max(1, solver.CHECKPOINT_PERIOD)
    count = 2 + (min(solver.CHECKPOINT_KEEP, written) if solver.CHECKPOINT_KEEP else written)
    free = shutil.disk_usage(_existing(Path(job.cfg.OUTPUT_DIR).expanduser().absolute())).free
    found = f"{free / GB:.1f} GB free for {count} checkpoints of {one / GB:.2f} GB"
    if count * one <= free:
        return Finding("disk", found)
    return Finding(
        "disk", found, "free some, set OUTPUT_DIR elsewhere, or lower SOLVER.CHECKPOINT_KEEP"
    )


def _memory(job: Job) -> Finding:
    """Each process makes the whole model on the CPU, reading SAM's file beside it."""
    model = sum(p.numel() * p.element_size() for p in job.model.parameters())
    checkpoint = Path(job.cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT).expanduser()
    one = model + (checkpoint.stat().st_size if checkpoint.is_file() else 0)
    free = psutil.virtual_memory().available
    found = f"{free / GB:.1f} GB free, {job.num_local} processes load {one / GB:.2f} GB each"
    if job.num_local * one <= free:
        return Finding("CPU memory", found)
    return Finding("CPU memory", found, "use a machine with more, or fewer processes on it")


def _sizes(config: PreTrainedConfig) -> CfgNode:
    """What MODEL.LMM.VISION_CONFIG or TEXT_CONFIG says for a pretrained model."""
    plain = config.to_dict()
    return CfgNode(
        {k: v for k, v in plain.items() if isinstance(v, int | float) or k == "hidden_act"}
    )
