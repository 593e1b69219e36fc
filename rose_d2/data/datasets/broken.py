"""Annotations that cannot be used: counted and reported once, or fatal when asked for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

logger = logging.getLogger(__name__)

_STRICT: ContextVar[bool] = ContextVar("strict_annotations", default=False)


@contextlib.contextmanager
def strict_annotations(on: bool = True) -> Iterator[None]:
    """Within this context a broken annotation raises ValueError instead of being counted.

    Args:
        on: False counts again, whatever the context around says.
    """
    token = _STRICT.set(on)
    try:
        yield
    finally:
        _STRICT.reset(token)


class BrokenAnnotations:
    """Counts what a loader had to leave out of one file.

    Args:
        source: the annotation file, for messages.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = source
        self.counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def add(self, reason: str, example: str) -> None:
        """Count one annotation that is left out.

        Args:
            reason: what is wrong, in the plural, e.g. "annotations without a polygon".
            example: which one it is, e.g. "annotation 17 of image 5".

        Raises:
            ValueError: within `strict_annotations`.
        """
        if _STRICT.get():
            raise ValueError(
                f"{self.source}: {reason}, first {example}; repair the file, or leave strict mode "
                "to skip such annotations."
            )
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self._examples.setdefault(reason, example)

    def report(self) -> None:
        """Log one warning with all counts; nothing when everything was sound."""
        if not self.counts:
            return
        parts = [
            f"{count} {reason} (first: {self._examples[reason]})"
            for reason, count in self.counts.items()
        ]
        logger.warning("%s: left out %s.", self.source, "; ".join(parts))
