"""How far an evaluation is, and how fast."""

from __future__ import annotations

import datetime
import logging
import sys
import time

from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from tqdm import tqdm

logger = logging.getLogger(__name__)

_LOG_SECONDS = 5
_WARM_UP_BATCHES = 5


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
