"""`setup` and `RoseTrainer`: detectron2's default set-up and trainer, for ROSE."""

import argparse
import logging
import multiprocessing
import os
import weakref
from collections.abc import Iterable
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, TrainerBase, default_setup, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from detectron2.utils.logger import setup_logger

from rose_d2.config import add_rose_config
from rose_d2.data.build import build_rose_test_loader, build_rose_train_loader
from rose_d2.engine.checkpointer import RoseCheckpointer
from rose_d2.engine.custom_data import use_custom_data
from rose_d2.engine.provenance import config_hash, write_results
from rose_d2.engine.random_state import RandomStateHook, preserved_random_state
from rose_d2.engine.train_loop import build_step_engine
from rose_d2.evaluation.build import build_evaluator

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Make the config of a run and do detectron2's `default_setup` (logging, seeds).

    Args:
        args: from detectron2's `default_argument_parser`.

    Returns:
        The frozen config; `MODEL.DEVICE` and `SEED` are settled, custom data are registered.

    Raises:
        FileNotFoundError: custom data are not where the config or the command line says.
        ValueError: custom data are not what they should be.
    """
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    use_custom_data(cfg, args)
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.SEED = _settled_seed(cfg, resume=args.resume)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="rose_d2")
    if comm.get_local_size() > 1:
        _share_machine(cfg)
    return cfg


def _share_machine(cfg: CfgNode) -> None:
    """Settle what one of several processes on a machine should not do as if it were alone."""
    # detectron2's launch leaves "spawn" behind, with which every loader worker would import
    # torch anew; the first method listed is the platform's own.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    if cfg.MODEL.DEVICE == "cpu":
        # Else every process would start one thread per core.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))


def _settled_seed(cfg: CfgNode, *, resume: bool) -> int:
    """Return `SEED`, one for all ranks; a negative one is drawn, or taken from the resumed run.

    Without a known seed the order of the data could not be found again.
    """
    seed = cfg.SEED
    earlier = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if seed < 0 and resume and os.path.isfile(earlier):
        with open(earlier) as file:
            seed = yaml.safe_load(file)["SEED"]
    if seed < 0:
        seed = int.from_bytes(os.urandom(3), "little")
    return comm.all_gather(seed)[0]


class RoseTrainer(DefaultTrainer):
    """detectron2's `DefaultTrainer` with the step engine of `SOLVER.ENGINE`.

    Hooks, checkpoint names, `resume_or_load` and `test` are detectron2's. Beyond it, a resumed
    run continues the same loss curve: the loader starts where the data stopped, random states
    are restored on every rank, and evaluation leaves them untouched.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's own: it would build its optimizer, loader and SimpleTrainer.
        TrainerBase.__init__(self)
        self.cfg = cfg
        model = self.build_model(cfg)
        self._trainer = build_step_engine(cfg, model)
        self.scheduler = self._trainer.scheduler
        self.checkpointer = RoseCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
            allow_missing_keys=cfg.MODEL.ALLOW_MISSING_KEYS,
            config_hash=config_hash(cfg),
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Return detectron2's hooks in its order; the checkpointer runs on every rank."""
        schedule = hooks.LRScheduler(self.optimizer, self.scheduler) if self.scheduler else None
        writers = hooks.PeriodicWriter(self.build_writers(), period=self.cfg.SOLVER.LOG_PERIOD)
        return [
            hooks.IterationTimer(),
            schedule,
            RandomStateHook(),
            hooks.PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD),
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate),
            writers if comm.is_main_process() else None,
        ]

    def build_writers(self) -> list[EventWriter]:
        """Return progress line, `metrics.json` and TensorBoard, smoothed over `LOG_PERIOD`."""
        folder, window = self.cfg.OUTPUT_DIR, self.cfg.SOLVER.LOG_PERIOD
        return [
            CommonMetricPrinter(self.max_iter, window),
            JSONWriter(os.path.join(folder, "metrics.json"), window),
            TensorboardXWriter(folder, window),
        ]

    def train(self) -> dict[str, Any] | None:
        """Train from `start_iter` to `SOLVER.MAX_ITER`."""
        loader = self.build_train_loader(self.cfg, start_iter=self.start_iter)
        # Now, because starting workers draws random numbers: the states saved in a checkpoint
        # are restored after this, in RandomStateHook.before_train.
        self._trainer.data_iterator = iter(loader)
        return super().train()

    def _evaluate(self) -> dict[str, Any]:
        with preserved_random_state():
            self._last_eval_results = self.test(self.cfg, self.checkpointer.model)
        return self._last_eval_results

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iter: int = 0) -> Iterable[list[dict]]:
        return build_rose_train_loader(cfg, start_iter=start_iter)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        return build_rose_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)


def evaluate_weights(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """Load `MODEL.WEIGHTS` (or, resuming, the last checkpoint) and evaluate `DATASETS.TEST`.

    The main process prints detectron2's tables and writes `OUTPUT_DIR/results.json`.

    Returns:
        dataset name -> task -> metric -> number; empty results except in the main process.

    Raises:
        ValueError: there are no weights to evaluate.
    """
    model = RoseTrainer.build_model(cfg)
    checkpointer = RoseCheckpointer(
        model, cfg.OUTPUT_DIR, allow_missing_keys=cfg.MODEL.ALLOW_MISSING_KEYS
    )
    weights = cfg.MODEL.WEIGHTS
    if resume and checkpointer.has_checkpoint():
        weights = checkpointer.get_checkpoint_file()
    if not weights:
        raise ValueError(
            "Evaluation needs trained weights: give MODEL.WEIGHTS a .safetensors file or a "
            "checkpoint folder, or --resume to take the last checkpoint of OUTPUT_DIR."
        )
    checkpointer.load(weights)
    results = RoseTrainer.test(cfg, model)
    if len(cfg.DATASETS.TEST) == 1:
        results = {cfg.DATASETS.TEST[0]: results}
    if comm.is_main_process():
        path = write_results(cfg, results, checkpointer.find_weights(weights))
        logger.info("Results are in %s", path)
    return results
