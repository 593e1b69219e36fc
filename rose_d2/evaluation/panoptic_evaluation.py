"""Panoptic quality at every level of the vocabulary."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image
from tabulate import tabulate

from rose_d2.evaluation.open_metrics import check_similarity
from rose_d2.evaluation.panoptic_quality import (
    ClassCredit,
    Pair,
    average_quality,
    count_segments,
)

logger = logging.getLogger(__name__)

_GROUPS = (("All", "", None), ("Things", "_th", True), ("Stuff", "_st", False))


class _Drawing(NamedTuple):
    """One panoptic answer in the official format."""

    png: bytes
    segments_info: list[dict[str, Any]]


class RosePanopticEvaluator(COCOPanopticEvaluator):
    """Panoptic quality; segments whose name fits no class become void.

    A PNG is kept per image and distinct level of the vocabulary. A level that gives the same
    answers as an earlier one on all images is not counted again.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        headline_level: str | None = None,
        similarity: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            dataset_name: registered dataset with `panoptic_json` and `panoptic_root`.
            output_dir: where predictions.json is written; None writes nothing.
            headline_level: entry of "levels" that is the headline; without "levels", or where it
                is not among them, the headline is the output's own "panoptic_seg".
            similarity: (C, C) of the classes, for Open PQ; None leaves it out.
        """
        super().__init__(dataset_name, output_dir)
        self._dataset_name = dataset_name
        self._headline_level = headline_level
        self._similarity = similarity
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "file_name" and "image_id".
            outputs: with "panoptic_seg", an id map and its segments_info, and, optionally, the
                same for every level in "levels".
        """
        for sample, output in zip(inputs, outputs, strict=True):
            answers = {
                level: answer["panoptic_seg"] for level, answer in output.get("levels", {}).items()
            }
            headline = answers.get(self._headline_level) or output["panoptic_seg"]
            distinct = {id(ids): (ids, info) for ids, info in (headline, *answers.values())}
            position = {key: index for index, key in enumerate(distinct)}
            stem = os.path.splitext(os.path.basename(sample["file_name"]))[0]
            self._predictions.append(
                {
                    "image_id": sample["image_id"],
                    "file_name": f"{stem}.png",
                    "drawings": [self._draw(*answer) for answer in distinct.values()],
                    "levels": {level: position[id(ids)] for level, (ids, _) in answers.items()},
                    "headline": position[id(headline[0])],
                }
            )

    def evaluate(self) -> OrderedDict | None:
        """detectron2's results, PQ per level and Open PQ; None on all but the main process.

        Raises:
            ValueError: an annotated image has no prediction.
        """
        comm.synchronize()
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        predictions = {p["image_id"]: p for p in itertools.chain(*gathered)}
        with PathManager.open(self._metadata.panoptic_json) as file:
            content = json.load(file)
        image_ids = [annotation["image_id"] for annotation in content["annotations"]]
        missing = [image_id for image_id in image_ids if image_id not in predictions]
        if missing:
            raise ValueError(
                f"{len(missing)} images of {self._dataset_name} have no prediction, first image "
                f"{missing[0]}; evaluate the whole dataset."
            )
        ordered = [predictions[image_id] for image_id in image_ids]
        headline = [prediction["headline"] for prediction in ordered]
        folder = PathManager.get_local_path(self._metadata.panoptic_root)
        counter = _Counter(content, folder, ordered)
        self._write_headline(content, ordered)
        results = OrderedDict(panoptic_seg=self._headline_results(counter, headline))
        if levels := list(ordered[0]["levels"]) if ordered else []:
            results["panoptic_seg_levels"] = {
                level: counter.quality([p["levels"][level] for p in ordered])["pq"]
                for level in levels
            }
        if self._similarity is not None:
            results["open_panoptic_seg"] = self._open_results(counter, headline)
        return results

    def _headline_results(self, counter: _Counter, headline: list[int]) -> dict[str, float]:
        results, rows = {}, []
        for name, suffix, is_thing in _GROUPS:
            average = counter.quality(headline, is_thing)
            for key in ("pq", "sq", "rq"):
                results[f"{key.upper()}{suffix}"] = average[key]
            rows.append([name, *average.values()])
        columns = ["", "PQ", "SQ", "RQ", "#categories"]
        table = tabulate(rows, headers=columns, tablefmt="pipe", floatfmt=".3f", numalign="center")
        logger.info("Panoptic Evaluation Results:\n%s", table)
        return results

    def _open_results(self, counter: _Counter, headline: list[int]) -> dict[str, float]:
        metadata = self._metadata
        class_of_id = {
            **metadata.stuff_dataset_id_to_contiguous_id,
            **metadata.thing_dataset_id_to_contiguous_id,
        }
        check_similarity(self._similarity, len(set(class_of_id.values())))
        credit = ClassCredit(self._similarity, class_of_id, counter.categories)
        average = counter.quality(headline, credit=credit)
        return {f"Open {key.upper()}": average[key] for key in ("pq", "sq", "rq")}

    def _draw(self, panoptic_seg: torch.Tensor, segments_info: list[dict]) -> _Drawing:
        """Only mapped segments with pixels, as PNG and in the keys the official format knows."""
        ids = panoptic_seg.cpu().numpy().astype("<i4")  # a copy
        present = set(np.unique(ids).tolist())
        official = [
            {"id": s["id"], "category_id": s["category_id"], "isthing": bool(s["isthing"])}
            for s in segments_info
            if s["category_id"] >= 0 and s["id"] in present
        ]
        for void in present - {segment["id"] for segment in official} - {0}:
            ids[ids == void] = 0
        colours = ids.view(np.uint8).reshape(*ids.shape, 4)[..., :3]  # little end first: R, G, B
        with io.BytesIO() as out:
            # Flat colours compress well at any level, and the fastest takes a tenth of the time.
            Image.fromarray(np.ascontiguousarray(colours)).save(out, "PNG", compress_level=1)
            return _Drawing(out.getvalue(), [self._convert_category_id(s) for s in official])

    def _write_headline(self, content: dict[str, Any], ordered: list[dict[str, Any]]) -> None:
        if not self._output_dir:
            return
        path = os.path.join(self._output_dir, "predictions.json")
        entries = [_official_entry(p, p["headline"]) for p in ordered]
        with PathManager.open(path, "w") as file:
            json.dump({**content, "annotations": entries}, file)


class _Counter:
    """Qualities of choices of one drawing per image, each choice counted once."""

    def __init__(
        self, content: Mapping[str, Any], annotated_folder: str, predictions: list[dict[str, Any]]
    ) -> None:
        self.categories = {category["id"]: category for category in content["categories"]}
        self._annotations = content["annotations"]
        self._folder = annotated_folder
        self._predictions = predictions
        self._counted: dict[tuple[bytes, bool], Any] = {}

    def quality(
        self, choice: list[int], is_thing: bool | None = None, credit: ClassCredit | None = None
    ) -> dict[str, float]:
        key = np.array(choice, dtype=np.int64).tobytes(), credit is not None
        if key not in self._counted:
            self._counted[key] = self._count(choice, credit)
        return average_quality(self._counted[key], self.categories, is_thing)

    def _count(self, choice: list[int], credit: ClassCredit | None) -> Any:
        pairs: list[Pair] = []
        with tempfile.TemporaryDirectory(prefix="panoptic_eval") as folder:
            rows = zip(self._annotations, self._predictions, choice, strict=True)
            for annotation, prediction, index in rows:
                entry = _official_entry(prediction, index)
                with open(os.path.join(folder, entry["file_name"]), "wb") as file:
                    file.write(prediction["drawings"][index].png)
                pairs.append((annotation, entry))
            return count_segments(pairs, self._folder, folder, self.categories, credit)


def _official_entry(prediction: dict[str, Any], index: int) -> dict[str, Any]:
    segments = [dict(segment) for segment in prediction["drawings"][index].segments_info]
    return {
        "image_id": prediction["image_id"],
        "file_name": prediction["file_name"],
        "segments_info": segments,
    }
