"""One of two processes, run by test_health.py: `python health_jobs.py OUTPUT_DIR RANK PORT`.

First rank 1 has a NaN loss twice, then a training stands still because rank 1 gets no data.
"""

import json
import logging
import math
import sys
import time
from collections import OrderedDict
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from toy_training import NoDropoutROSE, ToyTrainer, seed_all, toy_config, toy_item

from rose_d2.engine.non_finite import NonFiniteGuard
from rose_d2.modeling.supervision import Supervisor

STALLS_AT, PATIENCE_SECONDS, REPORT = 4, 120, "Stalled: rank 1"


class NumberSupervisor(Supervisor):
    """Its losses by image are the numbers of the images."""

    def __init__(self):
        self._hooks = OrderedDict()

    def losses(self, batched_inputs):
        numbers = [float(item["file_name"][:6]) for item in batched_inputs]
        for hook in self._hooks.values():
            hook(batched_inputs, {"loss_text": torch.tensor(numbers)})


class TaskROSE(NoDropoutROSE):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.supervisor = NumberSupervisor()

    def forward(self, batched_inputs):
        self.supervisor.losses(batched_inputs)
        return super().forward(batched_inputs)


class StallingTrainer(ToyTrainer):
    """Rank 1 sees the task `referring`, and waits before `STALLS_AT` until a stall is reported."""

    @classmethod
    def build_train_loader(cls, cfg, start_iter=0):
        task = ("semantic", "referring")[comm.get_rank()]
        for index, batch in enumerate(super().build_train_loader(cfg, start_iter)):
            if index == STALLS_AT and comm.get_rank() == 1:
                stands_still(Path(cfg.OUTPUT_DIR))
            yield [item | {"task": task} for item in batch]


def stands_still(folder):
    end = time.monotonic() + PATIENCE_SECONDS
    expected = {"log_0.txt": REPORT, "log_1.txt": "this process stands at"}
    while time.monotonic() < end and any(
        text not in (folder / name).read_text() for name, text in expected.items()
    ):
        time.sleep(0.05)


def try_guard(folder):
    """Skip one step, stop at the next; rank 1 alone has the NaN."""
    guard = NonFiniteGuard.from_config(
        toy_config(folder, "SOLVER.MAX_SKIPPED_STEPS", 1), NoDropoutROSE(None)
    )
    loss = math.nan if comm.get_rank() == 1 else 1.0
    batches = [[toy_item(comm.get_rank())]]
    decisions = [guard.inspect(0, [{"loss_text": value}], 1.0, batches) for value in (1.0, loss)]
    try:
        guard.inspect(2, [{"loss_text": loss}], 1.0, batches)
    except FloatingPointError as error:
        decisions.append(str(error))
    (folder / f"guard_{comm.get_rank()}.json").write_text(json.dumps(decisions))


def main(folder, rank, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    logging.basicConfig(
        filename=folder / f"log_{comm.get_rank()}.txt", level=logging.INFO, force=True
    )
    try_guard(folder)
    cfg = toy_config(folder, "MODEL.META_ARCHITECTURE", "TaskROSE", "SOLVER.MAX_ITER", 6)
    cfg.SOLVER.LOG_PERIOD = 3
    cfg.SOLVER.WATCHDOG_SECONDS = 2.0
    cfg.SOLVER.DEVICE_PEAK_TFLOPS = 1.0
    seed_all(cfg.SEED)
    StallingTrainer(cfg).train()
    comm.synchronize()  # process 0 has the store


META_ARCH_REGISTRY.register(TaskROSE)

if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
