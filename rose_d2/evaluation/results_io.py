"""Results of an evaluation as a file that any JSON reader accepts."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping

from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)


def write_results(
    results: Mapping[str, Mapping], path: str, provenance: Mapping | None = None
) -> None:
    """Write metrics to a JSON file, replacing it in one step. Call on the main process only.

    Args:
        results: {dataset: {task: {metric: value}}}; NaN and infinities, which JSON does not have,
            become null.
        path: of the file; folders are made.
        provenance: further top-level entries (configuration, checkpoint, versions).

    Raises:
        ValueError: if the provenance has an entry called "results".
    """
    if provenance and "results" in provenance:
        raise ValueError(
            "Got a provenance entry 'results', which is the metrics' own key; rename it."
        )
    document = {**(provenance or {}), "results": results}
    PathManager.mkdirs(os.path.dirname(path) or ".")
    partial = f"{path}.partial"
    with PathManager.open(partial, "w") as file:
        json.dump(_jsonable(document), file, indent=2, allow_nan=False)
        file.write("\n")
    os.replace(partial, path)
    logger.info("Wrote the results to %s", path)


def _jsonable(value: object) -> object:
    """Plain containers and finite numbers."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    if hasattr(value, "item"):  # a NumPy or torch scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
