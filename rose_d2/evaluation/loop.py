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

from rose_d2.data.build import LEFT_OUT, sample_key
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
        The evaluator's results; empty on all but the main process. Where items were left out
        (see `rose_d2.data.build.left_out`) "left_out" has their number in "samples", of "of".

    Raises:
        ValueError: all items were left out.
    """
    if not isinstance(evaluator, DatasetEvaluator):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()
    left_out = _LeftOut()
    logger.info("Start inference on %d batches", len(data_loader))
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        if store is not None:
            stack.callback(store.close)
            stack.callback(left_out.note_in, store)  # once the scoring thread has written
        progress = stack.enter_context(InferenceProgress(len(data_loader)))
        scorer = _Background if overlap else _Foreground
        scoring = stack.enter_context(scorer(partial(_score, evaluator, store)))
        before = time.perf_counter()
        for batch in data_loader:
            loaded = time.perf_counter()
            inputs = left_out.separated(batch)
            outputs = _run(model, inputs, store) if inputs else None
            computed = time.perf_counter()
            if inputs:
                scoring.put(inputs, outputs)
            if outputs is None:
                progress.skip()
            else:
                progress.add(loaded - before, computed - loaded, scoring.seconds)
            before = time.perf_counter()
    counts = left_out.tell(evaluator)
    results = evaluator.evaluate() or {}
    return {**results, LEFT_OUT: counts} if results and counts else results


class _LeftOut:
    """The items that cannot be used: not run, not scored, counted and reported once."""

    def __init__(self) -> None:
        self._items: list[dict[str, Any]] = []
        self._num_used = 0

    def separated(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The usable items of a batch; the others are kept here."""
        used = [item for item in batch if LEFT_OUT not in item]
        self._items += [item for item in batch if LEFT_OUT in item]
        self._num_used += len(used)
        return used

    def note_in(self, store: PredictionStore) -> None:
        """Tell who scores the outputs later."""
        for item in self._items:
            store.leave_out(sample_key(item), item[LEFT_OUT])

    def tell(self, evaluator: DatasetEvaluator) -> dict[str, float]:
        """Tell the evaluators of all processes' items, and the log; returns the counts.

        Raises:
            ValueError: nothing is left.
        """
        items, used = zip(*comm.all_gather((self._items, self._num_used)), strict=True)
        unusable = [item for part in items for item in part]
        if not unusable:
            return {}
        total = sum(used) + len(unusable)
        said = f"of {total} samples cannot be used, first: {unusable[0][LEFT_OUT]}"
        if len(unusable) == total:
            raise ValueError(f"Nothing can be evaluated: {total} {said}")
        if comm.is_main_process():
            logger.warning("Left out of all scores: %d %s", len(unusable), said)
        leave_out(evaluator, unusable)
        return {"samples": float(len(unusable)), "of": float(total)}


def leave_out(evaluator: DatasetEvaluator, samples: list[dict[str, Any]]) -> None:
    """Tell an evaluator, and those that it consists of, what must not count as missed."""
    for part in getattr(evaluator, "_evaluators", ()):  # of DatasetEvaluators
        leave_out(part, samples)
    if hasattr(evaluator, "leave_out"):
        evaluator.leave_out(samples)


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
