"""Evaluation on one dataset: by running a model, by continuing a run, or from its predictions."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from rose_d2.config.fingerprint import prediction_fingerprint
from rose_d2.config.read import read_config
from rose_d2.data.build import (
    build_rose_test_loader,
    left_out,
    load_test_dicts,
    sample_key,
    usable_for_scoring,
)
from rose_d2.data.datasets.custom import register_custom
from rose_d2.data.datasets.registration import check_files, registered_entries
from rose_d2.evaluation.build import build_evaluator, check_evaluator_type
from rose_d2.evaluation.loop import BatchLoader, inference_on_dataset
from rose_d2.evaluation.predictions import PredictionStore
from rose_d2.refinement.evaluation import build_refinement_evaluator

logger = logging.getLogger(__name__)


PREDICTIONS_FOLDER = "predictions"
# Of tasks whose annotations are images; files without objects are refused where they are read.
_HEADLINES = {"sem_seg": "mIoU", "panoptic_seg": "PQ"}


_CONFIG_NAME = "config.yaml"


class Weights(NamedTuple):
    """The file a model was loaded from."""

    path: str
    sha256: str


def check_test_datasets(names: Sequence[str]) -> None:
    """Refuse datasets that cannot be evaluated, before anything expensive has begun.

    Args:
        names: DATASETS.TEST.

    Raises:
        FileNotFoundError: files of a dataset are missing; the message says how to get them.
        ValueError: a dataset is not registered, or has no known evaluator.
    """
    registered = DatasetCatalog.list()
    entries = registered_entries()
    for name in names:
        if name not in registered:
            near = difflib.get_close_matches(name, entries, n=4, cutoff=0.5)
            advice = f"near are {', '.join(near)}" if near else "`tools/check_data.py` lists all"
            raise ValueError(
                f"DATASETS.TEST (or --dataset) names {name!r}, which is not registered; {advice}."
            )
        check_evaluator_type(name)
        check_files(name)


def evaluate_dataset(
    cfg: CfgNode,
    model: Callable[[list[dict]], list[dict]],
    dataset_name: str,
    evaluator: DatasetEvaluator,
    *,
    weights: Weights | None = None,
    overwrite_predictions: bool = False,
) -> dict[str, Any]:
    """Run a model on a dataset, except on the items whose outputs are saved already.

    Args:
        cfg: the config of the run.
        model: with its weights loaded.
        dataset_name: a registered dataset.
        evaluator: of the dataset.
        weights: what the model was loaded from; None saves no predictions.
        overwrite_predictions: run saved items again.

    Returns:
        task -> metric -> number; empty on all but the main process.

    Raises:
        ValueError: the predictions in OUTPUT_DIR were made with something else; or nothing can be
            scored, because no item can be used or no pixel is labelled.
    """
    if weights is None or not cfg.TEST.SAVE_PREDICTIONS:
        strict = cfg.DATASETS.STRICT
        loader: BatchLoader = build_rose_test_loader(cfg, dataset_name, strict=strict)
        return _with_a_score(inference_on_dataset(model, loader, evaluator), dataset_name)
    samples = load_test_dicts(cfg, dataset_name)
    store = _open_store(cfg, dataset_name, len(samples), weights, overwrite_predictions)
    loader = _ResumedLoader(cfg, dataset_name, samples, store)
    results = inference_on_dataset(model, loader, evaluator, store=store)
    return _with_a_score(results, dataset_name)


def _with_a_score(results: dict[str, Any], dataset_name: str) -> dict[str, Any]:
    """The results, if anything was annotated that they could be about.

    Raises:
        ValueError: nothing was.
    """
    for task, metric in _HEADLINES.items():
        if math.isnan(results.get(task, {}).get(metric, 0.0)):
            raise ValueError(
                f"{metric} of {dataset_name} is not a number: no pixel of its images is labelled, "
                "so nothing can be scored; check its label images."
            )
    return results


def _open_store(
    cfg: CfgNode, dataset_name: str, num_samples: int, weights: Weights, overwrite: bool
) -> PredictionStore:
    folder = Path(cfg.OUTPUT_DIR) / PREDICTIONS_FOLDER / dataset_name
    fingerprint = prediction_fingerprint(cfg, dataset_name, num_samples, weights.sha256)
    store = PredictionStore(folder, fingerprint, overwrite=overwrite)
    logger.info("Predictions are saved in %s; it has %d of %d", folder, len(store), num_samples)
    if comm.is_main_process():
        used = cfg.clone()
        used.defrost()
        used.MODEL.WEIGHTS = weights.path
        (folder / _CONFIG_NAME).write_text(used.dump(), encoding="utf-8")
    return store


class _ResumedLoader:
    """First the items that have outputs, as they are in the dataset, then batches of the rest.

    Both are divided evenly among the processes. A batch that is not complete is run as a whole, so
    that the model sees the same batches as without an interruption.
    """

    def __init__(
        self, cfg: CfgNode, dataset_name: str, samples: Sequence[dict], store: PredictionStore
    ) -> None:
        size = cfg.TEST.IMS_PER_BATCH
        stored: list[list[dict]] = []
        rest: list[dict] = []
        for start in range(0, len(samples), size):
            batch = list(samples[start : start + size])
            if all(sample_key(sample) in store for sample in batch):
                stored.append(batch)
            else:
                rest += batch
        self._own = [stored[i] for i in InferenceSampler(len(stored))] if stored else []
        self._loader: BatchLoader = []
        if rest:
            self._loader = build_rose_test_loader(
                cfg, dataset_name, dicts=rest, strict=cfg.DATASETS.STRICT
            )
        if stored:
            num_stored = len(samples) - len(rest)
            logger.info("%d items are not run again, but scored as saved", num_stored)

    def __len__(self) -> int:
        return len(self._own) + len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        yield from self._own
        yield from self._loader


class _SavedLoader:
    """The items of a saved evaluation one by one, without their images."""

    def __init__(self, samples: Sequence[dict], store: PredictionStore, *, strict: bool) -> None:
        self._samples, self._store, self._strict = samples, store, strict

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[list[dict]]:
        unusable = self._store.left_out
        for sample in self._samples:
            key = sample_key(sample)
            if key in unusable:
                yield [left_out(sample, unusable[key])]
            else:
                yield [sample if self._strict else usable_for_scoring(sample)]


class SavedRun:
    """The predictions of one dataset, with the config they were made with."""

    def __init__(
        self,
        folder: Path,
        config_file: str | None = None,
        opts: Sequence[str] = (),
    ) -> None:
        """
        Args:
            folder: OUTPUT_DIR/predictions/<dataset>.
            config_file: None is the config saved beside the predictions.
            opts: changes to the config.

        Raises:
            FileNotFoundError: the folder has no predictions, or the dataset is not there.
            ValueError: the config does not fit the predictions, or some are missing.
        """
        self.store = PredictionStore(folder, None)
        made = self.store.fingerprint
        needed = {"dataset": str, "num_samples": int, "checkpoint_sha256": str}
        wrong = [name for name, kind in needed.items() if not isinstance(made.get(name), kind)]
        if wrong:
            raise ValueError(
                f"The description in {folder} lacks {', '.join(wrong)}, or has something else "
                "there: it is not of saved predictions."
            )
        self.dataset_name: str = made["dataset"]
        self.checkpoint_sha256: str = made["checkpoint_sha256"]
        self.cfg = read_config(config_file or str(folder / _CONFIG_NAME), opts)
        register_custom(self.cfg.DATASETS.CUSTOM)
        check_test_datasets([self.dataset_name])
        self._samples = load_test_dicts(self.cfg, self.dataset_name)
        self._check(folder)

    def score(self, output_dir: str) -> dict[str, Any]:
        """Score all predictions anew.

        Args:
            output_dir: evaluators write into <output_dir>/inference/<dataset>.

        Returns:
            task -> metric -> number.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = output_dir
        evaluator = build_refinement_evaluator(cfg, self.dataset_name, build_evaluator)
        batches = _SavedLoader(self._samples, self.store, strict=cfg.DATASETS.STRICT)
        results = inference_on_dataset(_no_model, batches, evaluator, store=self.store)
        return _with_a_score(results, self.dataset_name)

    def _check(self, folder: Path) -> None:
        wanted = prediction_fingerprint(
            self.cfg, self.dataset_name, len(self._samples), self.checkpoint_sha256
        )
        self.store.check_fingerprint(wanted)
        unusable = self.store.left_out
        keys = map(sample_key, self._samples)
        missing = [key for key in keys if key not in self.store and key not in unusable]
        if missing:
            raise ValueError(
                f"{folder} has predictions of {len(self._samples) - len(missing)} of the "
                f"{len(self._samples)} items of {self.dataset_name!r}; run the rest with "
                "`train_net.py --eval-only --save-predictions`, which continues where it stopped."
            )


def _no_model(batched_inputs: list[dict]) -> list[dict]:
    raise AssertionError("every item has a saved output, so no model is run")
