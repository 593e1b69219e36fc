"""Checkpoints to publish: merged with their bases, only what was trained, or only the bases.

A checkpoint of any engine holds whole weights (`RoseCheckpointer`), so all of them export alike.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file
from torch import nn

from rose_d2.checkpoint.weights import bases_metadata, read_safetensors
from rose_d2.config.fingerprint import config_hash, file_sha256, library_versions
from rose_d2.config.read import LMM_FOLDER, SAM_FILE
from rose_d2.files import new_folder, publish_folder
from rose_d2.modeling.backbone.llava_builders import merge_lora, save_llava
from rose_d2.modeling.backbone.llava_onevision import LlavaOneVisionBackbone
from rose_d2.modeling.mask_head import SAMMaskHead, save_sam
from rose_d2.modeling.parameter_table import format_parameter_table, part_sizes

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS_NAME = "model.safetensors"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CARD = resources.files("rose_d2.checkpoint") / "templates" / "model_card.md.j2"


def export_merged(
    cfg: CfgNode, model: nn.Module, weights_file: str, folder: Path, dtype: str | None = None
) -> None:
    """Write a folder that needs nothing else: LMM with LoRA merged, SAM, heads, config, card.

    Args:
        cfg: the config the model was built from.
        model: a ROSE model with its weights loaded. Its adapters are merged and its weights cast
            to `dtype` in place.
        weights_file: what it was loaded from, for the card.
        folder: to write; must not exist or be empty.
        dtype: a name in `DTYPES`; None keeps each weight's.

    Raises:
        ValueError: the folder is taken, the dtype is unknown, or the model has another backbone
            or mask head than this format knows.
    """
    hidden = _begin(folder, dtype)
    facts = CardFacts(
        name=folder.name,
        kind="merged",
        bases=model.base_revisions(),
        checkpoint_sha256=file_sha256(weights_file),
        config_hash=config_hash(cfg),
        versions=library_versions(),
        parameters=format_parameter_table(part_sizes(model)),
    )
    _write_bases(model, hidden, dtype)
    rest = {n: t for n, t in model.state_dict().items() if _is_outside_the_bases(n)}
    _save(rest, hidden / WEIGHTS_NAME, bases_metadata() | {"config_hash": facts.config_hash})
    config = cfg.clone()
    config.defrost()
    config.MODEL.LMM.PRETRAINED = config.MODEL.LMM.TOKENIZER = ""
    config.MODEL.MASK_HEAD.SAM_CHECKPOINT = ""
    config.MODEL.LORA.ENABLED = False
    _finish(config, facts, hidden, folder)


def export_trainable(
    cfg: CfgNode, weights_file: str, folder: Path, dtype: str | None = None
) -> None:
    """Write a folder with what was trained only; the bases are named, not copied.

    Args:
        cfg: the config of the run.
        weights_file: of a checkpoint.
        folder: to write; must not exist or be empty.
        dtype: a name in `DTYPES`; None keeps each weight's.

    Raises:
        ValueError: the folder is taken, the dtype is unknown or the weights are damaged.
    """
    hidden = _begin(folder, dtype)
    tensors, metadata = read_safetensors(weights_file)
    _save({n: _cast(t, dtype) for n, t in tensors.items()}, hidden / WEIGHTS_NAME, metadata)
    facts = CardFacts(
        name=folder.name,
        kind="trainable",
        bases=json.loads(metadata.get("base_revisions", "{}")),
        checkpoint_sha256=file_sha256(weights_file),
        config_hash=config_hash(cfg),
        versions=library_versions(),
        parameters=f"{sum(t.numel() for t in tensors.values()):,} numbers in {len(tensors)} "
        "tensors.",
    )
    config = cfg.clone()
    config.defrost()
    _finish(config, facts, hidden, folder)


def export_bases(model: nn.Module, folder: Path, dtype: str | None = None) -> None:
    """Write LMM and SAM alone, as MODEL.LMM.PRETRAINED and MODEL.MASK_HEAD.SAM_CHECKPOINT.

    Hugging Face's format has no place for patch positions: a training on the bases starts with
    fresh ones, and a warning says so.

    Args:
        model: see `export_merged`.
        folder: to write; must not exist or be empty.
        dtype: a name in `DTYPES`; None keeps each weight's.

    Raises:
        ValueError: see `export_merged`.
    """
    hidden = _begin(folder, dtype)
    _write_bases(model, hidden, dtype)
    if list(model.backbone.patch_positions.parameters()):
        logger.warning(
            "The learned patch positions (MODEL.LMM.PATCH_POSITIONS) are not among the bases: "
            "a training on them starts with fresh ones."
        )
    publish_folder(str(hidden), str(folder))


def _begin(folder: Path, dtype: str | None) -> Path:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"The dtype is {dtype!r}; allowed are {', '.join(DTYPES)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already: choose another folder or remove it.")
    return Path(new_folder(os.path.abspath(folder)))


def _write_bases(model: nn.Module, folder: Path, dtype: str | None) -> None:
    backbone, mask_head = model.backbone, model.mask_head
    if not isinstance(backbone, LlavaOneVisionBackbone) or not isinstance(mask_head, SAMMaskHead):
        raise ValueError(
            f"A {type(backbone).__name__} with a {type(mask_head).__name__} cannot be written as "
            "a Hugging Face folder and a SAM file; export only what was trained."
        )
    if getattr(backbone.model, "is_quantized", False):
        raise ValueError(
            "The language model is quantised, and what is lost cannot be exported: load it with "
            "MODEL.LMM.QUANTIZE none."
        )
    merged = merge_lora(backbone.model)
    logger.info("LoRA adapters merged into %d layers.", merged)
    if dtype is not None:
        model.to(DTYPES[dtype])
    save_llava(backbone.model, backbone.tokenizer, folder / LMM_FOLDER)
    save_sam(mask_head, folder / SAM_FILE)


def _is_outside_the_bases(name: str) -> bool:
    """Whether `model.safetensors` of a merged export holds this entry of the state dict."""
    if name.startswith("backbone.model."):
        return "embeddings.patch_embedding." in name
    return not name.startswith("mask_head.") or name.startswith("mask_head.mask_decoder.")


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    # Copies: safetensors refuses tensors that share memory.
    copies = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    save_file(copies, path, {"format": "pt", **metadata})
    path.chmod(mode)  # save_file lets only the owner read


def _cast(tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    return tensor.to(DTYPES[dtype]) if dtype is not None and tensor.is_floating_point() else tensor


def _finish(config: CfgNode, facts: CardFacts, hidden: Path, folder: Path) -> None:
    """Add config and card, and give the folder its name."""
    config.MODEL.WEIGHTS = ""
    config.OUTPUT_DIR = f"./output/{folder.name}"
    # Not dump() itself: its YAML marks values that are one object.
    plain = yaml.safe_load(config.dump())
    (hidden / "config.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    (hidden / "README.md").write_text(model_card(facts), encoding="utf-8")
    publish_folder(str(hidden), os.path.abspath(folder))


@dataclass(frozen=True)
class CardFacts:
    """What a model card says.

    Attributes:
        name: of the folder.
        kind: "merged" or "trainable".
        bases: submodule -> pretrained base and its revision, see `ROSE.base_revisions`.
        checkpoint_sha256: of the weights the export was made from.
        config_hash: of the config the model was trained with.
        versions: library -> version.
        parameters: what the model or the file consists of, Markdown.
    """

    name: str
    kind: str
    bases: Mapping[str, str]
    checkpoint_sha256: str
    config_hash: str
    versions: Mapping[str, str]
    parameters: str


def model_card(facts: CardFacts) -> str:
    """Write the card, with the header the Hugging Face hub reads.

    Args:
        facts: what to say. Of a base in a local folder only the folder's name is told.
    """
    bases = {module: _public_name(base) for module, base in facts.bases.items()}
    hub = [base.partition("@")[0] for base in facts.bases.values()]
    header = ModelCardData(
        library_name="rose_d2",
        pipeline_tag="image-segmentation",
        tags=["rose", "detectron2", "open-vocabulary-segmentation"],
        base_model=[name for name in hub if _HUB_NAME.fullmatch(name)] or None,
    )
    template = _CARD.read_text(encoding="utf-8")
    card = ModelCard.from_template(header, template_str=template, facts=facts, bases=bases)
    return f"{card}\n"


def _public_name(base: str) -> str:
    """Hub names stay; of a local path only the last two parts are told."""
    name, _, revision = base.rpartition("@")
    if revision != "local":
        return base
    return "/".join(Path(name).parts[-2:]) + " (local)"
