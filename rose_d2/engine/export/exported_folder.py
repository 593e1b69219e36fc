"""An exported model on disk: one folder with its own language model, SAM file and the rest.

    folder/lmm/               Hugging Face LLaVA-OneVision, adapters merged
    folder/sam.pth            Segment Anything
    folder/model.safetensors  heads, mask decoder, the patch embedding with its mask channel
    folder/config.yaml, README.md

`MODEL.WEIGHTS folder` loads all of it, for inference or to train on from there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

LMM_FOLDER = "lmm"
SAM_FILE = "sam.pth"
# Submodule -> what in the folder holds the rest of its weights.
BASES = {"backbone.model": LMM_FOLDER, "mask_head": SAM_FILE}
_METADATA_KEY = "bases_beside"


def bases_metadata() -> dict[str, str]:
    """Entry for the metadata of `model.safetensors`: further weights are in files beside it."""
    return {_METADATA_KEY: json.dumps(BASES)}


def use_exported_folder(cfg: CfgNode) -> None:
    """If MODEL.WEIGHTS is an exported folder, let its files be the pretrained bases, in place.

    Args:
        cfg: not frozen; MODEL.LMM.PRETRAINED, MODEL.LMM.TOKENIZER and
            MODEL.MASK_HEAD.SAM_CHECKPOINT are replaced.
    """
    folder = Path(cfg.MODEL.WEIGHTS).expanduser()
    if folder.suffix == ".safetensors":
        folder = folder.parent
    if not cfg.MODEL.WEIGHTS or not (folder / LMM_FOLDER / "config.json").is_file():
        return
    cfg.MODEL.LMM.PRETRAINED = str(folder / LMM_FOLDER)
    cfg.MODEL.LMM.TOKENIZER = ""
    cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT = str(folder / SAM_FILE)
    logger.info("%s is an exported model: its own language model and SAM are used.", folder)


def modules_beside(
    weights_file: str, metadata: Mapping[str, str], base_revisions: Mapping[str, str]
) -> tuple[str, ...]:
    """List the submodules of which a weights file holds a part and files beside it the rest.

    Args:
        weights_file: path of a safetensors file.
        metadata: its metadata.
        base_revisions: of the model that is to take it, see `ROSE.base_revisions`.

    Returns:
        Prefixes of parameter names; none for an ordinary checkpoint.

    Raises:
        ValueError: the model was not built from the files beside the weights.
    """
    expected = json.loads(metadata.get(_METADATA_KEY, "{}"))
    folder = Path(weights_file).parent
    for module, name in expected.items():
        base = base_revisions.get(module, "nothing").removesuffix("@local")
        # SAM's file is known by its name only.
        place = Path(name) if name == SAM_FILE else (folder / name).resolve()
        if (Path(base) if name == SAM_FILE else Path(base).resolve()) != place:
            raise ValueError(
                f"{weights_file} belongs to the language model {folder / LMM_FOLDER} and to "
                f"{folder / SAM_FILE}, but the model's {module} was made from {base}: set "
                "MODEL.LMM.PRETRAINED and MODEL.MASK_HEAD.SAM_CHECKPOINT to them, which "
                "rose_d2.engine.read_config.read_config does by itself for MODEL.WEIGHTS."
            )
    return tuple(f"{module}." for module in expected)
