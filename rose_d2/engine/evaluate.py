"""`--eval-only`: evaluation of trained weights, with results.json and a report."""

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from rose_d2.engine.checkpoints.checkpointer import RoseCheckpointer
from rose_d2.engine.dataset_evaluation import Weights, check_test_datasets
from rose_d2.engine.defaults import RoseTrainer
from rose_d2.engine.provenance import file_sha256, run_record, write_record
from rose_d2.engine.reports.report import write_report

logger = logging.getLogger(__name__)


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
