"""What a model consists of: parameters per part, how many of them train, in which dtype."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from tabulate import tabulate
from torch import nn

logger = logging.getLogger(__name__)


UNUSED = "unused"


@dataclass(frozen=True)
class PartSize:
    """One row of the table.

    Attributes:
        part: a name of MODEL.TRAINABLE in lower case, "lora", or "unused" for parameters that
            came with a pretrained model and that no output depends on.
        total: number of parameters.
        trainable: how many of them train.
        dtypes: their types, the trained ones first; "-" if there are none.
    """

    part: str
    total: int
    trainable: int
    dtypes: str


def part_sizes(model: nn.Module) -> list[PartSize]:
    """Count a model's parameters by part; a shared one belongs to the first part that has it.

    Args:
        model: its `parts()` lists named parameters by part. Those that DeepSpeed's ZeRO stage 3
            has divided among processes count as whole.
    """
    seen: set[int] = set()
    rows = []
    for part, named in model.parts().items():
        own = [p for _, p in named if id(p) not in seen]
        seen.update(id(p) for p in own)
        rows.append(_part_size(part, own))
    rest = [p for p in model.parameters() if id(p) not in seen]
    return [*rows, _part_size(UNUSED, rest)] if rest else rows


def format_parameter_table(sizes: Iterable[PartSize]) -> str:
    """Lay out rows of `part_sizes` and their sum as text; empty parts are left out."""
    shown = [size for size in sizes if size.total]
    rows = [[s.part, f"{s.total:,}", f"{s.trainable:,}", s.dtypes] for s in shown]
    total, trainable = sum(s.total for s in shown), sum(s.trainable for s in shown)
    share = f"{100 * trainable / max(total, 1):.2f} %"
    rows.append(["all", f"{total:,}", f"{trainable:,}", f"{share} trains"])
    columns = ["part", "parameters", "trainable", "dtype"]
    align = ("left", "right", "right", "left")
    return tabulate(rows, headers=columns, tablefmt="pipe", colalign=align, disable_numparse=True)


def log_parameter_table(model: nn.Module) -> None:
    """Write the table of a model into the log."""
    logger.info("Parameters of the model:\n%s", format_parameter_table(part_sizes(model)))


def _part_size(part: str, parameters: list[nn.Parameter]) -> PartSize:
    trained = [p for p in parameters if p.requires_grad]
    frozen = [p for p in parameters if not p.requires_grad]
    dtypes = dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in (*trained, *frozen))
    return PartSize(part, _count(parameters), _count(trained), ", ".join(dtypes) or "-")


def _count(parameters: list[nn.Parameter]) -> int:
    # ZeRO stage 3 leaves an empty tensor behind and notes the whole size as ds_numel.
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
