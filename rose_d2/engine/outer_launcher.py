"""Jobs whose processes torchrun or DeepSpeed's launcher has started, instead of `launch`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

# torchrun's name and DeepSpeed's.
_LOCAL_SIZE_NAMES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")


@dataclass(frozen=True)
class Place:
    """Which process of a job this is.

    Attributes:
        rank: among all processes.
        world_size: how many there are.
        local_rank: among those of this machine.
        local_size: how many run on this machine, as on every other.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int


def started_by_launcher(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Read what a launcher has told this process; None if none has started it.

    Args:
        environment: RANK, WORLD_SIZE, LOCAL_RANK, and LOCAL_WORLD_SIZE (torchrun) or LOCAL_SIZE
            (DeepSpeed).
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    local_size = next((n for n in _LOCAL_SIZE_NAMES if n in environment), None)
    if local_size is None or any(name not in environment for name in names):
        return None
    rank, world_size, local_rank = (int(environment[name]) for name in names)
    return Place(rank, world_size, local_rank, int(environment[local_size]))


def join_process_group(place: Place) -> None:
    """Do what detectron2's `launch` does in each process it starts.

    The launcher has set MASTER_ADDR and MASTER_PORT, where the processes find each other.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "nccl" if has_gpu else "gloo",
        init_method="env://",
        rank=place.rank,
        world_size=place.world_size,
        timeout=DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(place.local_size)
    comm.synchronize()
