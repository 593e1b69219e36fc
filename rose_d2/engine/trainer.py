"""`setup` and `RoseTrainer`: detectron2's default set-up and trainer, for ROSE."""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, default_setup, hooks
from detectron2.evaluation import DatasetEvaluator, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from detectron2.utils.logger import setup_logger
from torch import nn

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.config.fingerprint import config_hash, file_sha256
from rose_d2.config.read import read_config
from rose_d2.config.released import find_config
from rose_d2.data.build import build_rose_test_loader, build_rose_train_loader
from rose_d2.data.datasets.custom import use_custom_data
from rose_d2.data.mixture import training_weights
from rose_d2.engine.evaluate import Weights, check_test_datasets, evaluate_dataset
from rose_d2.engine.fine_tuning import is_fine_tuning, prepare_fine_tuning
from rose_d2.engine.launch import is_users_mistake, shared_store
from rose_d2.engine.metrics import TaskLossHook, ThroughputHook
from rose_d2.engine.preemption import (
    DataPositionHook,
    PreemptionHook,
    RandomStateHook,
    preserved_random_state,
    stop_before_training,
)
from rose_d2.engine.step_engine import StepEngine, TorchStepEngine, amp_dtype
from rose_d2.engine.watchdog import WatchdogHook
from rose_d2.evaluation.build import build_evaluator
from rose_d2.files import FolderLock
from rose_d2.modeling.parameter_table import log_parameter_table
from rose_d2.modeling.supervision import NO_TARGET_NAME, trained_names
from rose_d2.refinement.evaluation import build_evaluation_model, build_refinement_evaluator
from rose_d2.reports.record import run_record, write_record
from rose_d2.reports.report import write_report
from rose_d2.vocabulary.text_embeddings import TextEmbeddingBank

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Make the config of a run and do detectron2's `default_setup` (logging, seeds).

    Args:
        args: from detectron2's `default_argument_parser`.

    Returns:
        The frozen config; `MODEL.DEVICE` and `SEED` are settled, custom data are registered.

    Raises:
        FileNotFoundError: custom data are not where they should be.
        ValueError: the config file is missing, a key is unknown or has a value of another type,
            custom data are not what they should be, or OUTPUT_DIR cannot be had, see
            `claim_output`.
    """
    args.config_file = find_config(args.config_file)  # detectron2 prints the file
    cfg = read_config(args.config_file, args.opts)
    if not args.eval_only:
        stop_before_training()
    # An evaluation writes among the checkpoints, but replaces none.
    keeps = args.resume or args.eval_only
    claim_output(cfg.OUTPUT_DIR, resume=keeps, overwrite=getattr(args, "overwrite", False))
    # Before data are read, for what is left out of them is said once.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="rose_d2")
    told = prepare_fine_tuning(cfg, args) if is_fine_tuning(args) else use_custom_data(cfg, args)
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.SEED = _settled_seed(cfg, resume=args.resume)
    cfg.freeze()
    default_setup(cfg, args)
    for sentence in told or ():
        logger.info(sentence)
    if comm.get_local_size() > 1:
        _share_machine(cfg)
    return cfg


_held: dict[str, FolderLock] = {}
"""Of this process, by folder, until it ends."""


def claim_output(output_dir: str, *, resume: bool, overwrite: bool) -> None:
    """Take OUTPUT_DIR for this training or evaluation, in the main process.

    Args:
        output_dir: OUTPUT_DIR.
        resume: go on from what is there, or only evaluate it.
        overwrite: checkpoints that are there may be replaced.

    Raises:
        OSError: the folder cannot be written.
        ValueError: another program uses it; or it has checkpoints, and neither is wanted.
    """
    if not comm.is_main_process():
        return
    folder = os.path.realpath(output_dir)
    if folder not in _held:
        _held[folder] = FolderLock(output_dir, purpose="OUTPUT_DIR")
    if not (resume or overwrite) and RoseCheckpointer(None, output_dir).has_checkpoint():
        _held.pop(folder).release()
        raise ValueError(
            f"OUTPUT_DIR {output_dir} has checkpoints of an earlier run, which this one would "
            "replace: --resume continues that run, --overwrite starts a new one in their place, "
            "and another OUTPUT_DIR keeps both."
        )


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


def _refuse_quantised(cfg: CfgNode) -> None:
    if cfg.MODEL.LMM.QUANTIZE != "none":
        raise ValueError(
            f"MODEL.LMM.QUANTIZE is {cfg.MODEL.LMM.QUANTIZE}, which is for inference: quantised "
            "weights do not train, and adapters (MODEL.LORA) train beside whole ones. Set it to "
            "none to train, and quantise what was exported."
        )


class RoseTrainer(DefaultTrainer):
    """detectron2's `DefaultTrainer` with the step engine of `SOLVER.ENGINE`.

    Hooks, checkpoint names, `resume_or_load` and `test` are detectron2's. Beyond it, a resumed
    run continues the same loss curve: the loader starts where the data stopped, random states
    are restored on every rank, and evaluation leaves them untouched.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's own: it would build its optimizer, loader and SimpleTrainer.
        TrainerBase.__init__(self)
        check_test_datasets(cfg.DATASETS.TEST)
        _refuse_quantised(cfg)
        self.cfg = cfg
        embeddings = embed_trained_names(cfg)
        model = self.build_model(cfg)
        if embeddings:
            model.supervisor.text_embeddings.add(
                tuple(embeddings), torch.stack([*embeddings.values()])
            )
        log_parameter_table(model)
        self._trainer = build_step_engine(cfg, model)
        self.scheduler = self._trainer.scheduler
        self.checkpointer = RoseCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
            allow_missing_keys=cfg.MODEL.ALLOW_MISSING_KEYS,
            config_hash=config_hash(cfg),
            gathered_parameters=self._trainer.gathered_parameters,
            trainer=weakref.proxy(self),
        )
        self._data_position = DataPositionHook(
            cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION_STEPS
        )
        self._preemption = PreemptionHook(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Return detectron2's hooks in its order; the checkpointer runs on every rank."""
        schedule = hooks.LRScheduler(self.optimizer, self.scheduler) if self.scheduler else None
        writers = hooks.PeriodicWriter(self.build_writers(), period=self.cfg.SOLVER.LOG_PERIOD)
        return [
            hooks.IterationTimer(),
            *build_health_hooks(self.cfg, self._trainer, self.checkpointer.model),
            schedule,
            RandomStateHook(),
            self._data_position,
            hooks.PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD),
            self._preemption,
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
        data_iter = self._data_position.start_of_data(self.start_iter)
        loader = self.build_train_loader(self.cfg, start_iter=data_iter)
        # Now, because starting workers draws random numbers: the states saved in a checkpoint
        # are restored after this, in RandomStateHook.before_train.
        self._trainer.data_iterator = iter(loader)
        try:
            with _without_traceback_of_users_mistakes():
                return super().train()
        finally:
            # Ends the workers; while an error is on its way up, nothing else would for seconds.
            self._trainer.data_iterator = iter(())

    def _evaluate(self) -> dict[str, Any]:
        if self._preemption.agreed:  # in the last step: evaluation is left to the resumed run
            return {}
        with preserved_random_state(), self._trainer.evaluation():
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
        return build_refinement_evaluator(cfg, dataset_name, build_evaluator)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
        *,
        weights: Weights | None = None,
        overwrite_predictions: bool = False,
    ) -> dict[str, Any]:
        """Evaluate on DATASETS.TEST and print detectron2's tables.

        Args:
            cfg: the config of the run; TEST.REFINEMENT.ENABLED refines the answers.
            model: with its weights loaded.
            evaluators: one per dataset; None builds them.
            weights: what the model was loaded from. Only then TEST.SAVE_PREDICTIONS saves.
            overwrite_predictions: run saved items again.

        Returns:
            Results by dataset, or, as detectron2 has it, of the one dataset if it is only one.
        """
        results: dict[str, Any] = {}
        model = build_evaluation_model(cfg, model)
        for index, name in enumerate(cfg.DATASETS.TEST):
            evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name)
            results[name] = evaluate_dataset(
                cfg,
                model,
                name,
                evaluator,
                weights=weights,
                overwrite_predictions=overwrite_predictions,
            )
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return results if len(results) != 1 else next(iter(results.values()))


def embed_trained_names(cfg: CfgNode) -> dict[str, torch.Tensor]:
    """Embed the names of all that trains, in the main process alone, for every process.

    Before the language model is loaded: the text tower is gone by then, and no process loads it in
    the middle of a step.

    Args:
        cfg: the full config: MODEL.SIGLIP_TEXT, DATASETS.TRAIN.

    Returns:
        Name -> embedding; none for n-grams, which cost nothing.

    Raises:
        ImportError: the tokenizer of the text tower needs a package.
        ValueError: the text tower is not whole, or has another width.
    """
    if cfg.MODEL.SIGLIP_TEXT.SOURCE == "ngram":
        return {}
    datasets = dict.fromkeys(view.dataset_name for view in training_weights(cfg))
    names = dict.fromkeys(name for dataset in datasets for name in trained_names(dataset))
    names = tuple(names | {NO_TARGET_NAME: None})
    embeddings = TextEmbeddingBank.from_config(cfg)(names) if comm.is_main_process() else None
    return dict(zip(names, comm.all_gather(embeddings)[0], strict=True))


@contextlib.contextmanager
def _without_traceback_of_users_mistakes() -> Iterator[None]:
    """Keep detectron2 from logging a traceback where `run_job` will say it in one sentence."""
    train_loop = logging.getLogger("detectron2.engine.train_loop")
    train_loop.addFilter(_is_no_users_mistake)
    try:
        yield
    finally:
        train_loop.removeFilter(_is_no_users_mistake)


def _is_no_users_mistake(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not is_users_mistake(error)


def build_health_hooks(cfg: CfgNode, engine: StepEngine, model: nn.Module) -> list[HookBase]:
    """Build the hooks, which all ranks have to run and which come before the writers.

    Args:
        cfg: the full config: SOLVER.DEVICE_PEAK_TFLOPS, SOLVER.WATCHDOG_SECONDS, LOG_PERIOD.
        engine: makes the steps.
        model: the unwrapped model.

    Raises:
        ValueError: SOLVER.WATCHDOG_SECONDS is negative.
    """
    period = cfg.SOLVER.LOG_PERIOD
    compute_dtype = getattr(torch, cfg.MODEL.LMM.DTYPE)
    dtypes = {torch.float32, compute_dtype, amp_dtype(cfg) or compute_dtype}
    health: list[HookBase] = [
        ThroughputHook(
            model,
            images_per_step=cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION_STEPS,
            period=period,
            dtypes=sorted(dtypes, key=str),
            peak_tflops=cfg.SOLVER.DEVICE_PEAK_TFLOPS,
        ),
        TaskLossHook(model, period),
    ]
    if cfg.SOLVER.WATCHDOG_SECONDS < 0:
        raise ValueError(
            f"SOLVER.WATCHDOG_SECONDS is {cfg.SOLVER.WATCHDOG_SECONDS}: use 0 for no watchdog, or "
            "the seconds without progress until it reports a stall."
        )
    if cfg.SOLVER.WATCHDOG_SECONDS:
        store = shared_store() if comm.get_world_size() > 1 else None
        seconds = cfg.SOLVER.WATCHDOG_SECONDS
        health.append(WatchdogHook(engine=engine, model=model, seconds=seconds, store=store))
    return health


def evaluate_weights(
    cfg: CfgNode, *, resume: bool = False, overwrite_predictions: bool = False
) -> dict[str, Any]:
    """Load `MODEL.WEIGHTS` (or, resuming, the last checkpoint) and evaluate `DATASETS.TEST`.

    The main process prints detectron2's tables and writes `results.json` and `report.md` into
    OUTPUT_DIR.

    Args:
        cfg: the config of the run.
        resume: evaluate the last checkpoint of OUTPUT_DIR, if there is one.
        overwrite_predictions: with TEST.SAVE_PREDICTIONS, give up those of an earlier run.

    Returns:
        dataset name -> task -> metric -> number; empty results except in the main process.

    Raises:
        FileNotFoundError: the weights or the files of a dataset are missing.
        ValueError: there are no weights, they do not fit the model, a dataset or its evaluator is
            unknown, or saved predictions were made with something else.
    """
    check_test_datasets(cfg.DATASETS.TEST)
    checkpointer = RoseCheckpointer(None, cfg.OUTPUT_DIR)
    path = cfg.MODEL.WEIGHTS
    if resume and checkpointer.has_checkpoint():
        path = checkpointer.get_checkpoint_file()
    if not path:
        raise ValueError(
            "Evaluation needs trained weights: give MODEL.WEIGHTS a .safetensors file or a "
            "checkpoint folder, or --resume to take the last checkpoint of OUTPUT_DIR."
        )
    weights_file = checkpointer.find_weights(path)
    model = RoseTrainer.build_model(cfg)
    checkpointer = RoseCheckpointer(model, allow_missing_keys=cfg.MODEL.ALLOW_MISSING_KEYS)
    checkpointer.load(weights_file)
    results = RoseTrainer.test(
        cfg,
        model,
        weights=_shared_description(weights_file),
        overwrite_predictions=overwrite_predictions,
    )
    if len(cfg.DATASETS.TEST) == 1:
        results = {cfg.DATASETS.TEST[0]: results}
    if comm.is_main_process():
        record = run_record(cfg, results, weights_file)
        logger.info("Results are in %s", write_record(record, cfg.OUTPUT_DIR))
        logger.info("A report is in %s", write_report(cfg, results, cfg.OUTPUT_DIR, record))
    return results


def _shared_description(weights_file: str) -> Weights:
    """Name and hash of the weights; only the main process reads the file for it."""
    sha256 = file_sha256(weights_file) if comm.is_main_process() else ""
    return Weights(weights_file, comm.all_gather(sha256)[0])


def build_step_engine(cfg: CfgNode, model: nn.Module) -> StepEngine:
    """Build the engine named by `SOLVER.ENGINE` around a model on its device.

    Raises:
        ValueError: the name is unknown, or the engine refuses a setting.
    """
    if cfg.SOLVER.ENGINE not in STEP_ENGINES:
        raise ValueError(
            f"SOLVER.ENGINE is {cfg.SOLVER.ENGINE!r}, but the engines are {sorted(STEP_ENGINES)}."
        )
    return STEP_ENGINES[cfg.SOLVER.ENGINE](cfg, model)


def _deepspeed_engine(cfg: CfgNode, model: nn.Module) -> StepEngine:
    # Imported when used: DeepSpeed is slow to import and only dependable on Linux.
    from rose_d2.engine.deepspeed_engine import DeepSpeedStepEngine

    return DeepSpeedStepEngine(cfg, model)


STEP_ENGINES: dict[str, Callable[[CfgNode, nn.Module], StepEngine]] = {
    "torch": TorchStepEngine,
    "deepspeed": _deepspeed_engine,
}
