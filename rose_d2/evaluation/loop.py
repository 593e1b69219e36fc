"""Running a model over a dataset while what it answered before is being scored."""

from __future__ import annotations

import datetime
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sized
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_context
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from torch import nn
from tqdm import tqdm

from rose_d2.data.build import sample_key
from rose_d2.evaluation.predictions import PredictionStore

logger = logging.getLogger(__name__)

# Batches that may wait to be scored; their outputs stay in memory.
_QUEUE_SIZE = 2
_STOP_SECONDS = 10.0
_LOG_SECONDS = 5
_WARM_UP_BATCHES = 5


class BatchLoader(Sized, Iterable[list[dict[str, Any]]], Protocol):
    """A loader of batches that knows how many there are."""


def inference_on_dataset(
    model: Callable[[list[dict]], list[dict]],
    data_loader: BatchLoader,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    *,
    store: PredictionStore | None = None,
    overlap: bool = True,
) -> dict[str, Any]:
    """Run the model on all items and evaluate what it answers.

    As detectron2's function of this name, but one thread scores (and stores) the outputs of a
    batch, in order, while the model works on the next. An error on either side stops both.

    Args:
        model: takes a batch of the loader, returns one output per item. A module is in
            evaluation mode meanwhile.
        data_loader: of this process's items.
        evaluator: one, several, or None.
        store: keeps every output. A batch whose outputs it has already is not run again.
        overlap: False scores each batch before the next one is run.

    Returns:
        The evaluator's results; empty on all but the main process.
    """
    if not isinstance(evaluator, DatasetEvaluator):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()
    logger.info("Start inference on %d batches", len(data_loader))
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        if store is not None:
            stack.callback(store.close)
        progress = stack.enter_context(InferenceProgress(len(data_loader)))
        scorer = _Background if overlap else _Foreground
        scoring = stack.enter_context(scorer(partial(_score, evaluator, store)))
        before = time.perf_counter()
        for inputs in data_loader:
            loaded = time.perf_counter()
            outputs = _run(model, inputs, store)
            computed = time.perf_counter()
            scoring.put(inputs, outputs)
            if outputs is None:
                progress.skip()
            else:
                progress.add(loaded - before, computed - loaded, scoring.seconds)
            before = time.perf_counter()
    return evaluator.evaluate() or {}


def _run(
    model: Callable[[list[dict]], list[dict]], inputs: list[dict], store: PredictionStore | None
) -> list[dict] | None:
    """Outputs of a batch; None if the store has all of them."""
    if store is not None and all(sample_key(item) in store for item in inputs):
        return None
    outputs = model(inputs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return outputs


def _score(
    evaluator: DatasetEvaluator,
    store: PredictionStore | None,
    inputs: list[dict],
    outputs: list[dict] | None,
) -> None:
    """Store the outputs of a batch, or look them up, and evaluate them."""
    if store is not None:
        if outputs is None:
            outputs = [store.get(sample_key(item)) for item in inputs]
        else:
            for item, output in zip(inputs, outputs, strict=True):
                store.add(sample_key(item), output, item["task"])
            store.flush()
    evaluator.process(inputs, outputs)


class _Foreground:
    """Calls a function at once."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.seconds = 0.0

    def __enter__(self) -> _Foreground:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def put(self, *arguments: Any) -> None:
        start = time.perf_counter()
        self.function(*arguments)
        self.seconds += time.perf_counter() - start


class _Background(_Foreground):
    """Calls a function in one thread, in the order of `put`, at most `_QUEUE_SIZE` calls behind.

    Leaving the context waits for all calls; leaving it with an error gives up those that have not
    begun. The function's own error is raised by the next `put` or on leaving.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        super().__init__(function)
        self._queue: queue.Queue[tuple | None] = queue.Queue(_QUEUE_SIZE)
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        # A daemon: if it is stuck, the process must still be able to end.
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)

    def __enter__(self) -> _Background:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._put(None)
            self._thread.join()
            self._raise_error()
        self._stopped.set()
        self._thread.join(_STOP_SECONDS)

    def put(self, *arguments: Any) -> None:
        self._put(arguments)

    def _put(self, item: tuple | None) -> None:
        while True:
            self._raise_error()
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    @torch.no_grad()
    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    arguments = self._queue.get(timeout=0.1)
                except queue.Empty:
                    continue
                if arguments is None:
                    return
                super().put(*arguments)
        except BaseException as error:  # noqa: BLE001  (the other thread raises it)
            self._error = error


class InferenceProgress:
    """A bar on a terminal, else detectron2's lines in the log; the first batches do not count."""

    def __init__(self, total: int) -> None:
        """
        Args:
            total: batches of this process.
        """
        self._total = total
        self._done = self._timed = 0
        self._warm_up = min(_WARM_UP_BATCHES, total - 1)
        self._start = time.perf_counter()
        self._data = self._compute = self._scoring = self._scoring_before = 0.0
        shown = comm.is_main_process() and sys.stderr.isatty()
        self._bar = tqdm(total=total, desc="inference", unit="batch") if shown else None

    def __enter__(self) -> InferenceProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None:
            self._log_total()

    def skip(self) -> None:
        """Count a batch that the store answered."""
        self._done += 1
        if self._timed == 0:
            self._start = time.perf_counter()
        if self._bar is not None:
            self._bar.update()

    def add(self, data_seconds: float, compute_seconds: float, scoring_seconds: float) -> None:
        """Count a batch; `scoring_seconds` is the sum over all batches so far."""
        self._done += 1
        self._timed += 1
        self._data += data_seconds
        self._compute += compute_seconds
        self._scoring = scoring_seconds
        if self._timed == self._warm_up:
            self._warm_up, self._timed = 0, 0
            self._data = self._compute = 0.0
            self._scoring_before = scoring_seconds
            self._start = time.perf_counter()
        if self._bar is not None:
            self._bar.update()
        elif self._warm_up == 0 and self._timed:
            log_every_n_seconds(logging.INFO, self._line(), n=_LOG_SECONDS)

    def _line(self) -> str:
        total = (time.perf_counter() - self._start) / self._timed
        scoring = (self._scoring - self._scoring_before) / self._timed
        eta = datetime.timedelta(seconds=int(total * (self._total - self._done)))
        return (
            f"Inference done {self._done}/{self._total}. "
            f"Dataloading: {self._data / self._timed:.4f} s/iter. "
            f"Inference: {self._compute / self._timed:.4f} s/iter. "
            f"Eval: {scoring:.4f} s/iter. Total: {total:.4f} s/iter. ETA={eta}"
        )

    def _log_total(self) -> None:
        for what, seconds in (
            ("", time.perf_counter() - self._start),
            ("pure compute ", self._compute),
        ):
            logger.info(
                "Total inference %stime: %s (%.6f s / iter per device, on %d devices)",
                what,
                datetime.timedelta(seconds=int(seconds)),
                seconds / max(1, self._timed),
                comm.get_world_size(),
            )
