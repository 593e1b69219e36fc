"""The README of an exported model: what it is, what it was made from, how to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_FILES = {
    "merged": """\
| file | what |
| :-- | :-- |
| `lmm/` | LLaVA-OneVision, LoRA merged, in Hugging Face's layout: transformers reads it |
| `sam.pth` | Segment Anything in segment-anything's layout |
| `model.safetensors` | patch analyzer, mask decoder, patch embedding with its mask channel |
| `config.yaml` | the config for this folder |

Nothing else is needed: `MODEL.WEIGHTS` set to this folder takes language model and SAM from it
too. To train on from here add `MODEL.LORA.ENABLED True`; the adapters start at zero.""",
    "trainable": """\
| file | what |
| :-- | :-- |
| `model.safetensors` | what was trained: adapters, heads, mask decoder, embeddings |
| `config.yaml` | the config it was trained with |

The bases named above are needed too: `MODEL.LMM.PRETRAINED` and `MODEL.MASK_HEAD.SAM_CHECKPOINT`
of the config say where they are looked for.""",
}

_CARD = """\
---
{header}---

# {name}

A [ROSE](https://arxiv.org/abs/2412.00153) model: it segments everything in an image and generates
a name for each mask, answers referring expressions and repairs masks and names in conversation.
Exported by rose_d2.

## Made from

{bases}
- config hash `{config_hash}`, checkpoint SHA-256 `{checkpoint_sha256}`
- {versions}

The licences of the bases and of the training data apply to these weights as well.

## Parts

{parameters}

## Files

{files}

## Use

```
python demo/demo.py --config-file {folder}/config.yaml --input photos/ --opts MODEL.WEIGHTS {folder}
python train_net.py --config-file {folder}/config.yaml --eval-only MODEL.WEIGHTS {folder}
```
"""


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
    header = {
        "library_name": "rose_d2",
        "pipeline_tag": "image-segmentation",
        "tags": ["rose", "detectron2", "open-vocabulary-segmentation"],
        "base_model": [name for name in hub if _HUB_NAME.fullmatch(name)],
    }
    lines = [f"- `{module}`: `{base}`" for module, base in bases.items()]
    return _CARD.format(
        header=yaml.safe_dump({k: v for k, v in header.items() if v}, sort_keys=False),
        name=facts.name,
        bases="\n".join(lines) or "- random numbers: no pretrained base",
        config_hash=facts.config_hash,
        checkpoint_sha256=facts.checkpoint_sha256,
        versions=", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        parameters=facts.parameters,
        files=_FILES[facts.kind],
        folder=facts.name,
    )


def _public_name(base: str) -> str:
    """Hub names stay; of a local path only the last two parts are told."""
    name, _, revision = base.rpartition("@")
    if revision != "local":
        return base
    return "/".join(Path(name).parts[-2:]) + " (local)"
