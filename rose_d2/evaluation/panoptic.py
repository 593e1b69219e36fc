"""Panoptic quality at every level of the vocabulary, and Open PQ, which counts similar names."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
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
_ID_OFFSET = 1 << 24
# A fixed number, so that sums do not depend on the number of cores.
_IMAGES_PER_TASK = 64
Pair = tuple[dict[str, Any], dict[str, Any]]


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
        annotations = self._load_annotations()
        image_ids = [annotation["image_id"] for annotation in annotations]
        missing = [image_id for image_id in image_ids if image_id not in predictions]
        if missing:
            raise ValueError(
                f"{len(missing)} images of {self._dataset_name} have no prediction, first image "
                f"{missing[0]}; evaluate the whole dataset."
            )
        ordered = [predictions[image_id] for image_id in image_ids]
        headline = [prediction["headline"] for prediction in ordered]
        counter = _Counter(self._categories(), annotations, self._metadata.panoptic_root, ordered)
        self._write_headline(ordered)
        results = OrderedDict(panoptic_seg=self._headline_results(counter, headline))
        if levels := list(ordered[0]["levels"]) if ordered else []:
            results["panoptic_seg_levels"] = {
                level: counter.quality([p["levels"][level] for p in ordered])["pq"]
                for level in levels
            }
        if self._similarity is not None:
            results["open_panoptic_seg"] = self._open_results(counter, headline)
        return results

    def _load_annotations(self) -> list[dict[str, Any]]:
        """What is annotated, in the official format, with the file's own ids of categories."""
        root = self._metadata.panoptic_root
        records = load_coco_panoptic(
            self._metadata.panoptic_json,
            self._metadata.get("image_root", ""),
            root,
            self._metadata.thing_dataset_id_to_contiguous_id,
            self._metadata.stuff_dataset_id_to_contiguous_id,
        )
        annotations = []
        for record in records:
            if record["image_id"] in self._unusable:
                continue
            segments = [self._convert_category_id(dict(s)) for s in record["segments_info"]]
            annotation = {"image_id": record["image_id"], "segments_info": segments}
            annotation["file_name"] = os.path.relpath(record["pan_seg_file_name"], root)
            if not all("area" in segment for segment in segments):
                areas = _count_values(_read_ids(root, annotation))
                for segment in segments:
                    segment["area"] = areas.get(segment["id"], 0)
            annotations.append(annotation)
        return annotations

    def _categories(self) -> dict[int, dict[str, Any]]:
        things = self._metadata.thing_dataset_id_to_contiguous_id
        every = {**self._metadata.stuff_dataset_id_to_contiguous_id, **things}
        return {own_id: {"id": own_id, "isthing": int(own_id in things)} for own_id in every}

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

    def _write_headline(self, ordered: list[dict[str, Any]]) -> None:
        if not self._output_dir:
            return
        content = read_json(self._metadata.panoptic_json)
        path = os.path.join(self._output_dir, "predictions.json")
        entries = [_official_entry(p, p["headline"]) for p in ordered]
        with PathManager.open(path, "w") as file:
            json.dump({**content, "annotations": entries}, file)


class _Counter:
    """Qualities of choices of one drawing per image, each choice counted once."""

    def __init__(
        self,
        categories: dict[int, dict[str, Any]],
        annotations: list[dict[str, Any]],
        annotated_folder: str,
        predictions: list[dict[str, Any]],
    ) -> None:
        self.categories = categories
        self._annotations = annotations
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


def count_segments(
    pairs: Sequence[Pair],
    annotated_folder: str,
    predicted_folder: str,
    categories: Mapping[int, Mapping[str, Any]],
    credit: ClassCredit | None = None,
) -> PQStat:
    """True positives, false positives, misses and IoU sums of every category.

    Args:
        pairs: (annotated, predicted) entries of the panoptic format, one per image.
        annotated_folder: of the annotated PNGs.
        predicted_folder: of the predicted PNGs.
        categories: the file's categories by id.
        credit: None counts with panopticapi's own code; otherwise similar classes count in part,
            see `open_mean_iou`.

    Returns:
        panopticapi's PQStat.
    """
    stat_class = require("panopticapi.evaluation", "Panoptic quality").PQStat
    tasks = [pairs[i : i + _IMAGES_PER_TASK] for i in range(0, len(pairs), _IMAGES_PER_TASK)]
    count = partial(
        _count_official if credit is None else partial(_count_with_credit, credit=credit),
        annotated_folder=annotated_folder,
        predicted_folder=predicted_folder,
        categories=categories,
    )
    total = stat_class()
    workers = min(os.cpu_count() or 1, len(tasks))
    if workers < 2:
        for task in tasks:
            total += count(task)
        return total
    with multiprocessing.Pool(workers) as pool:
        for counted in pool.imap(count, tasks):
            total += counted
    return total


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


def _count_official(task: Sequence[Pair], **where: Any) -> PQStat:
    from panopticapi.evaluation import pq_compute_single_core

    folders = where["annotated_folder"], where["predicted_folder"]
    with contextlib.redirect_stdout(io.StringIO()):
        return pq_compute_single_core(0, task, *folders, where["categories"])


def _count_with_credit(task: Sequence[Pair], *, credit: ClassCredit, **where: Any) -> PQStat:
    from panopticapi.evaluation import PQStat

    stat = PQStat()
    for annotated, predicted in task:
        annotated_ids = _read_ids(where["annotated_folder"], annotated)
        predicted_ids = _read_ids(where["predicted_folder"], predicted)
        _count_image(stat, annotated, predicted, annotated_ids, predicted_ids, credit)
    return stat


def _count_image(
    stat: PQStat,
    annotated: dict[str, Any],
    predicted: dict[str, Any],
    annotated_ids: np.ndarray,
    predicted_ids: np.ndarray,
    credit: ClassCredit,
) -> None:
    truths = {segment["id"]: segment for segment in annotated["segments_info"]}
    guesses = {segment["id"]: segment for segment in predicted["segments_info"]}
    areas = _count_values(predicted_ids)
    shared = {
        divmod(pair, _ID_OFFSET): pixels
        for pair, pixels in _count_values(annotated_ids * _ID_OFFSET + predicted_ids).items()
    }
    granted: dict[int, float] = {}  # by annotated segment
    earned: dict[int, float] = {}  # by predicted segment
    for (truth, guess), pixels in shared.items():
        if truth not in truths or guess not in guesses or truths[truth]["iscrowd"] == 1:
            continue
        union = areas[guess] + truths[truth]["area"] - pixels - shared.get((VOID, guess), 0)
        if pixels / union <= 0.5:
            continue
        category = truths[truth]["category_id"]
        share = credit(guesses[guess]["category_id"], category)
        stat[category].tp += share
        stat[category].iou += share * (pixels / union)
        granted[truth] = earned[guess] = share
    crowds = {}
    for truth, segment in truths.items():
        if segment["iscrowd"] == 1:
            crowds[segment["category_id"]] = truth
        else:
            stat[segment["category_id"]].fn += 1 - granted.get(truth, 0.0)
    for guess, segment in guesses.items():
        ignored = shared.get((VOID, guess), 0)
        if segment["category_id"] in crowds:
            ignored += shared.get((crowds[segment["category_id"]], guess), 0)
        if ignored / areas[guess] <= 0.5:
            stat[segment["category_id"]].fp += 1 - earned.get(guess, 0.0)


def _read_ids(folder: str, entry: dict[str, Any]) -> np.ndarray:
    """Segment ids of a panoptic PNG, int64 (H, W)."""
    with Image.open(os.path.join(folder, entry["file_name"])) as image:
        return colours_to_ids(np.asarray(image, dtype=np.int64))


def _count_values(array: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
