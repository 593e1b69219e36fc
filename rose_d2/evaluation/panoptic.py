"""Panoptic quality at every level of the vocabulary, and Open PQ, which counts similar names."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image
from tabulate import tabulate

from rose_d2.data.coco_files import read_json
from rose_d2.data.datasets.coco import load_coco_panoptic
from rose_d2.dependencies import require
from rose_d2.evaluation.semantic import check_similarity
from rose_d2.structures.mask_codec import colours_to_ids

if TYPE_CHECKING:
    from panopticapi.evaluation import PQStat

logger = logging.getLogger(__name__)

_GROUPS = (("All", "", None), ("Things", "_th", True), ("Stuff", "_st", False))
VOID = 0
# Above the ids that three bytes of colour can spell.
_ID_OFFSET = 1 << 24
# Pixels by annotated and predicted segment.
Overlaps = dict[tuple[int, int], int]
# How much of a true positive a predicted category is on an annotated one, in [0, 1].
Credit = Callable[[int, int], float]


def same_category(predicted_id: int, annotated_id: int) -> float:
    """Panoptic quality's own credit: 1 for the right category."""
    return float(predicted_id == annotated_id)


class _Answer(NamedTuple):
    """One panoptic answer: its segments, and where they lie on what is annotated."""

    segments_info: list[dict[str, Any]]
    overlaps: Overlaps


class RosePanopticEvaluator(COCOPanopticEvaluator):
    """Panoptic quality; segments whose name fits no class become void.

    What is kept of an image is how many pixels its segments share, for every distinct level of the
    vocabulary. A level that gives the same answers as an earlier one on all images is not counted
    again.
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
        self._unusable: set[Any] = set()

    def leave_out(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Give up images, which need no prediction.

        Args:
            samples: with "image_id".
        """
        self._unusable |= {sample["image_id"] for sample in samples}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "file_name" and "image_id"; images that are not annotated do not count.
            outputs: with "panoptic_seg", an id map and its segments_info, and, optionally, the
                same for every level in "levels".

        Raises:
            ValueError: an id map has another size than its annotated PNG.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            record = self._records.get(sample["image_id"])
            if record is None:
                continue
            with Image.open(record["pan_seg_file_name"]) as image:
                annotated_ids = colours_to_ids(np.asarray(image))
            levels = {
                level: answer["panoptic_seg"] for level, answer in output.get("levels", {}).items()
            }
            headline = levels.get(self._headline_level) or output["panoptic_seg"]
            distinct = {id(ids): (ids, info) for ids, info in (headline, *levels.values())}
            answers = [self._answer(annotated_ids, *answer) for answer in distinct.values()]
            position = {key: index for index, key in enumerate(distinct)}
            stem = os.path.splitext(os.path.basename(sample["file_name"]))[0]
            self._predictions.append(
                {
                    "image_id": sample["image_id"],
                    "file_name": f"{stem}.png",
                    "answers": answers,
                    "levels": {level: position[id(ids)] for level, (ids, _) in levels.items()},
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
        image_ids = [image_id for image_id in self._records if image_id not in self._unusable]
        missing = [image_id for image_id in image_ids if image_id not in predictions]
        if missing:
            raise ValueError(
                f"{len(missing)} images of {self._dataset_name} have no prediction, first image "
                f"{missing[0]}; evaluate the whole dataset."
            )
        ordered = [predictions[image_id] for image_id in image_ids]
        headline = [prediction["headline"] for prediction in ordered]
        annotations = [
            [self._convert_category_id(dict(s)) for s in self._records[image_id]["segments_info"]]
            for image_id in image_ids
        ]
        qualities = _Qualities(self._categories(), annotations, ordered)
        self._write_headline(ordered)
        results = OrderedDict(panoptic_seg=self._headline_results(qualities, headline))
        if levels := list(ordered[0]["levels"]) if ordered else []:
            results["panoptic_seg_levels"] = {
                level: qualities.quality([p["levels"][level] for p in ordered])["pq"]
                for level in levels
            }
        if self._similarity is not None:
            results["open_panoptic_seg"] = self._open_results(qualities, headline)
        return results

    @cached_property
    def _records(self) -> dict[Any, dict[str, Any]]:
        """Dataset dicts by image id."""
        records = load_coco_panoptic(
            self._metadata.panoptic_json,
            self._metadata.get("image_root", ""),
            self._metadata.panoptic_root,
            self._metadata.thing_dataset_id_to_contiguous_id,
            self._metadata.stuff_dataset_id_to_contiguous_id,
        )
        return {record["image_id"]: record for record in records}

    def _categories(self) -> dict[int, dict[str, Any]]:
        things = self._metadata.thing_dataset_id_to_contiguous_id
        every = {**self._metadata.stuff_dataset_id_to_contiguous_id, **things}
        return {own_id: {"id": own_id, "isthing": int(own_id in things)} for own_id in every}

    def _headline_results(self, qualities: _Qualities, headline: list[int]) -> dict[str, float]:
        results, rows = {}, []
        for name, suffix, is_thing in _GROUPS:
            average = qualities.quality(headline, is_thing)
            for key in ("pq", "sq", "rq"):
                results[f"{key.upper()}{suffix}"] = average[key]
            rows.append([name, *average.values()])
        columns = ["", "PQ", "SQ", "RQ", "#categories"]
        table = tabulate(rows, headers=columns, tablefmt="pipe", floatfmt=".3f", numalign="center")
        logger.info("Panoptic Evaluation Results:\n%s", table)
        return results

    def _open_results(self, qualities: _Qualities, headline: list[int]) -> dict[str, float]:
        metadata = self._metadata
        class_of_id = {
            **metadata.stuff_dataset_id_to_contiguous_id,
            **metadata.thing_dataset_id_to_contiguous_id,
        }
        check_similarity(self._similarity, len(set(class_of_id.values())))
        credit = ClassCredit(self._similarity, class_of_id, qualities.categories)
        average = qualities.quality(headline, credit=credit)
        return {f"Open {key.upper()}": average[key] for key in ("pq", "sq", "rq")}

    def _answer(
        self, annotated_ids: np.ndarray, panoptic_seg: torch.Tensor, segments_info: list[dict]
    ) -> _Answer:
        """Only mapped segments with pixels, in the keys the official format knows."""
        overlaps = count_overlaps(annotated_ids, panoptic_seg.cpu().numpy())
        present = {guess for _, guess in overlaps}
        official = [
            {"id": s["id"], "category_id": s["category_id"], "isthing": bool(s["isthing"])}
            for s in segments_info
            if s["category_id"] >= 0 and s["id"] in present
        ]
        return _Answer([self._convert_category_id(s) for s in official], overlaps)

    def _write_headline(self, ordered: list[dict[str, Any]]) -> None:
        if not self._output_dir:
            return
        content = read_json(self._metadata.panoptic_json)
        path = os.path.join(self._output_dir, "predictions.json")
        entries = [_official_entry(p, p["headline"]) for p in ordered]
        with PathManager.open(path, "w") as file:
            json.dump({**content, "annotations": entries}, file)


class _Qualities:
    """Qualities of choices of one answer per image, each choice counted once."""

    def __init__(
        self,
        categories: dict[int, dict[str, Any]],
        annotations: list[list[dict[str, Any]]],
        predictions: list[dict[str, Any]],
    ) -> None:
        self.categories = categories
        self._annotations = annotations
        self._predictions = predictions
        self._counted: dict[tuple[bytes, bool], PQStat] = {}

    def quality(
        self, choice: list[int], is_thing: bool | None = None, credit: Credit = same_category
    ) -> dict[str, float]:
        key = np.array(choice, dtype=np.int64).tobytes(), credit is same_category
        if key not in self._counted:
            self._counted[key] = self._count(choice, credit)
        return average_quality(self._counted[key], self.categories, is_thing)

    def _count(self, choice: list[int], credit: Credit) -> PQStat:
        stat = require("panopticapi.evaluation", "Panoptic quality").PQStat()
        rows = zip(self._annotations, self._predictions, choice, strict=True)
        for annotated, prediction, index in rows:
            answer = prediction["answers"][index]
            count_segments(stat, annotated, answer.segments_info, answer.overlaps, credit)
        return stat


def _official_entry(prediction: dict[str, Any], index: int) -> dict[str, Any]:
    segments = [dict(segment) for segment in prediction["answers"][index].segments_info]
    return {
        "image_id": prediction["image_id"],
        "file_name": prediction["file_name"],
        "segments_info": segments,
    }


class ClassCredit:
    """How much of a true positive a predicted class is on an annotated one."""

    def __init__(
        self,
        similarity: np.ndarray,
        class_of_id: Mapping[int, int],
        categories: Mapping[int, Mapping[str, Any]],
    ) -> None:
        """
        Args:
            similarity: (C, C) in [0, 1], predicted by annotated class, ones on the diagonal.
            class_of_id: category id in the file -> row of `similarity`.
            categories: the file's categories by id, with "isthing".
        """
        self._similarity = similarity
        self._class_of_id = dict(class_of_id)
        self._is_thing = {key: bool(category["isthing"]) for key, category in categories.items()}

    def __call__(self, predicted_id: int, annotated_id: int) -> float:
        """Similarity of two category ids; 0 between a thing and stuff."""
        if self._is_thing[predicted_id] != self._is_thing[annotated_id]:
            return 0.0
        rows = self._class_of_id
        return float(self._similarity[rows[predicted_id], rows[annotated_id]])


def count_overlaps(annotated_ids: np.ndarray, predicted_ids: np.ndarray) -> Overlaps:
    """Pixels that each annotated segment shares with each predicted one.

    Args:
        annotated_ids: int (H, W) in [0, 2^24), 0 where nothing is annotated.
        predicted_ids: int (H, W) likewise.

    Returns:
        Pixels by (annotated id, predicted id), for all pairs that share any.

    Raises:
        ValueError: the maps differ in size.
    """
    if annotated_ids.shape != predicted_ids.shape:
        raise ValueError(
            f"A map of segments has size (height, width) {predicted_ids.shape} but its annotated "
            f"PNG {annotated_ids.shape}; the annotations belong to other images."
        )
    pairs = (annotated_ids.astype(np.int64) * _ID_OFFSET + predicted_ids).ravel()
    # Neighbours are mostly equal: far fewer runs than pixels have to be sorted.
    starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    values, index = np.unique(pairs[starts], return_inverse=True)
    counts = np.bincount(index, np.diff(starts, append=len(pairs))).astype(np.int64)
    keys = map(divmod, values.tolist(), itertools.repeat(_ID_OFFSET))
    return dict(zip(keys, counts.tolist(), strict=True))


def count_segments(
    stat: PQStat,
    annotated: Sequence[Mapping[str, Any]],
    predicted: Sequence[Mapping[str, Any]],
    overlaps: Overlaps,
    credit: Credit = same_category,
) -> None:
    """Add one image's true positives, false positives, misses and IoU sums to a statistic.

    With `same_category` it counts what panopticapi's `pq_compute_single_core` counts, without
    drawing and reading a PNG; other credits count similar categories in part, see `open_mean_iou`.

    Args:
        stat: panopticapi's PQStat, updated.
        annotated: segments_info of the panoptic format, with the file's own ids of categories;
            "area" is counted where a segment lacks it.
        predicted: likewise; "id" and "category_id" are enough.
        overlaps: from `count_overlaps`.
        credit: of a predicted category on an annotated one.
    """
    truths = {segment["id"]: segment for segment in annotated}
    guesses = {segment["id"]: segment for segment in predicted}
    areas: dict[int, int] = defaultdict(int)
    for (_, guess), pixels in overlaps.items():
        areas[guess] += pixels
    granted: dict[int, float] = {}  # by annotated segment
    earned: dict[int, float] = {}  # by predicted segment
    for truth, guess, iou in _matches(truths, guesses, overlaps, areas):
        category = truths[truth]["category_id"]
        share = credit(guesses[guess]["category_id"], category)
        stat[category].tp += share
        stat[category].iou += share * iou
        granted[truth] = earned[guess] = share
    crowds = {}
    for truth, segment in truths.items():
        if segment["iscrowd"] == 1:
            crowds[segment["category_id"]] = truth
        else:
            stat[segment["category_id"]].fn += 1 - granted.get(truth, 0.0)
    for guess, segment in guesses.items():
        ignored = overlaps.get((VOID, guess), 0)
        if segment["category_id"] in crowds:
            ignored += overlaps.get((crowds[segment["category_id"]], guess), 0)
        if ignored / areas[guess] <= 0.5:
            stat[segment["category_id"]].fp += 1 - earned.get(guess, 0.0)


def _matches(
    truths: Mapping[int, Mapping[str, Any]],
    guesses: Mapping[int, Mapping[str, Any]],
    overlaps: Overlaps,
    areas: Mapping[int, int],
) -> Iterator[tuple[int, int, float]]:
    """Yield (annotated id, predicted id, IoU) above 0.5; pixels that nobody annotated do not count.

    `areas` are those of the predicted segments.
    """
    annotated_areas: dict[int, int] = defaultdict(int)
    for (truth, _), pixels in overlaps.items():
        annotated_areas[truth] += pixels
    for (truth, guess), pixels in overlaps.items():
        if truth not in truths or guess not in guesses or truths[truth]["iscrowd"] == 1:
            continue
        area = truths[truth].get("area", annotated_areas[truth])
        union = areas[guess] + area - pixels - overlaps.get((VOID, guess), 0)
        if pixels / union > 0.5:
            yield truth, guess, pixels / union


def average_quality(
    stat: PQStat, categories: Mapping[int, Mapping[str, Any]], is_thing: bool | None
) -> dict[str, float]:
    """Mean PQ, SQ and RQ of the categories with any segment.

    Args:
        stat: from `count_segments`.
        categories: the file's categories by id.
        is_thing: only things (True) or stuff (False); None takes all.

    Returns:
        "pq", "sq", "rq" in percent, NaN where there is no segment, and "n" categories.
    """
    try:
        average, _ = stat.pq_average(categories, isthing=is_thing)
    except ZeroDivisionError:  # panopticapi divides by the number of categories it found
        return {**dict.fromkeys(("pq", "sq", "rq"), float("nan")), "n": 0}
    return {**{k: float(100 * average[k]) for k in ("pq", "sq", "rq")}, "n": average["n"]}
