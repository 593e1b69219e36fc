"""One run of the demo: images in, pictures and a COCO-format file out, batch by batch."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from files import coloured, file_name_of, panoptic_ids, readable, result_stem, save_image
from gallery import write_gallery
from PIL import Image
from tqdm import tqdm

from rose_d2.config.fingerprint import config_hash, file_sha256
from rose_d2.config.read import read_released_config
from rose_d2.data.image_io import read_image
from rose_d2.files import FolderLock
from rose_d2.predictor.predictions_file import PredictionsFile
from rose_d2.predictor.predictor import RosePredictor, find_weights
from rose_d2.predictor.questions import resolve_task, segments_from_output
from rose_d2.structures.segments import Segment
from rose_d2.visualization.sheets import contact_sheet
from rose_d2.visualization.visualizer import RoseVisualizer

_SHEET_PICTURES = 40
# What one image can cause, in the model or while its results are drawn and encoded.
_OF_ONE_IMAGE = (
    RuntimeError,
    ValueError,
    MemoryError,
    TypeError,
    LookupError,
    ArithmeticError,
    cv2.error,
)


class FolderRun:
    """Segments images and keeps on disk what every batch gave, so that it can be continued."""

    pictures = "overlays"
    progress_name = "segmentation"
    done_word = "segmented"
    batch_size = 1
    task: str | None = None

    def __init__(
        self,
        images: Sequence[Path],
        *,
        output: Path,
        config_file: str,
        opts: Sequence[str] = (),
        task: str | None = None,
        refer: str | None = None,
        candidates: list[str] | None = None,
        min_score: float = 0.5,
        batch_size: int = 1,
        overwrite: bool = False,
        overlay: bool = True,
    ) -> None:
        """
        Args:
            images: files to segment.
            output: folder of the results.
            config_file: a ROSE config.
            opts: changes to it, KEY VALUE KEY VALUE.
            task: "semantic", "instance" or "panoptic" (default); None with `refer`.
            refer: a referring expression.
            candidates: names to choose from.
            min_score: smallest objectness of a segment.
            batch_size: images a call of the model.
            overwrite: redo images that have their result.
            overlay: draw pictures.

        Raises:
            ValueError: options or config do not fit, or `output` holds results of other settings.
            OSError: config or weights do not exist.
        """
        self.batch_size, self.min_score = batch_size, min_score
        self.task = self.progress_name = resolve_task(task, refer, candidates)
        self.question = {"task": task, "refer": refer, "candidates": candidates}
        cfg = read_released_config(config_file, opts, min_score=min_score)
        info = {
            "description": "Segments with their generated names, by ROSE (rose_d2)",
            "task": self.task,
            "refer": refer,
            "vocabulary": candidates,
            "confidence_threshold": min_score,
            "config_hash": config_hash(cfg),
            "weights_sha256": file_sha256(find_weights(cfg)),
        }
        self._begin(images, output, cfg, info, overwrite=overwrite, overlay=overlay)

    def _begin(
        self,
        images: Sequence[Path],
        output: Path,
        cfg: CfgNode,
        info: dict[str, Any],
        *,
        overwrite: bool,
        overlay: bool,
    ) -> None:
        """Open the file of predictions, find what is left to do, and load the model for it."""
        self.output, self.overlay = output, overlay
        self.max_pixels = cfg.INPUT.MAX_PIXELS
        self.images = list(images)
        self.done = 0
        self.failures: list[str] = []
        self._lock = FolderLock(output, purpose="--output")
        try:
            self._open(cfg, info, overwrite=overwrite)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, cfg: CfgNode, info: dict[str, Any], *, overwrite: bool) -> None:
        path = self.output / "predictions.json"
        self.predictions = PredictionsFile.open(path, info, overwrite=overwrite)
        self.todo = [image for image in self.images if overwrite or not self._is_done(image)]
        self._taken = {entry["result_name"].casefold() for entry in self.predictions.images()}
        if self.todo:
            self.predictor = RosePredictor(cfg)
            # Now, so that a folder that cannot be written is found out before the work.
            self.predictions.save()

    def run(self) -> int:
        """Segment what is not done yet and report.

        Returns:
            The exit status: 0, 1 if images failed, 130 if it was interrupted.
        """
        try:
            interrupted = self._work()
            self._report(interrupted)
        except OSError as error:  # of the disk: no other file would fare better
            print(f"demo.py: error: {error}; the same command continues.", file=sys.stderr)
            return 1
        finally:
            self._lock.release()
        return 130 if interrupted else int(bool(self.failures))

    def _work(self) -> bool:
        """Do what is not done yet, with its pictures; whether Ctrl-C ended it."""
        interrupted = False
        try:
            if self.todo:
                self._segment_all()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if self.todo:
                self.predictions.save()
        if self.overlay and self.done:
            try:
                self._write_contact_sheet()
                write_gallery(self.output, self.pictures, self.predictions.content())
            except _OF_ONE_IMAGE as error:
                self.failures.append(f"the contact sheet or the gallery: {error}")
        return interrupted

    def _segment_all(self) -> None:
        with tqdm(total=len(self.todo), desc=self.progress_name, unit="image") as progress:
            readable = self._read_all(progress)
            while batch := list(itertools.islice(readable, self.batch_size)):
                for (path, image), output in zip(batch, self._predict(batch), strict=True):
                    if output is not None:
                        self._try_to_keep(path, image, output)
                self.predictions.save(always=False)
                progress.update(len(batch))

    def _read_all(self, progress: tqdm) -> Iterator[tuple[Path, np.ndarray]]:
        for path in self.todo:
            try:
                image = read_image(str(path), max_pixels=self.max_pixels)
            except (ValueError, OSError, MemoryError) as error:
                self._fail(path, error)
                progress.update()
                continue
            yield path, image

    def _predict(self, batch: list[tuple[Path, np.ndarray]]) -> list[dict[str, Any] | None]:
        """Outputs of a batch; None for an image that the model fails on even alone."""
        try:
            return self.predictor.predict_batch([image for _, image in batch], **self.question)
        except _OF_ONE_IMAGE as error:
            if len(batch) == 1:
                self._fail(batch[0][0], error)
                return [None]
        return [self._predict([item])[0] for item in batch]

    def _one_by_one(
        self,
        batch: list[tuple[Path, np.ndarray]],
        answer: Callable[[Path, np.ndarray], dict[str, Any]],
    ) -> list[dict[str, Any] | None]:
        """Outputs of a batch whose images have a session each; None for one that failed."""
        outputs: list[dict[str, Any] | None] = []
        for path, image in batch:
            try:
                outputs.append(answer(path, image))
            except _OF_ONE_IMAGE as error:
                self._fail(path, error)
                outputs.append(None)
        return outputs

    def _fail(self, path: Path, error: Exception) -> None:
        reason = readable(" ".join(str(error).split()) or type(error).__name__)
        name = readable(str(path))
        self.failures.append(reason if name in reason else f"{name!r}: {reason}")

    def _try_to_keep(self, path: Path, image: np.ndarray, output: dict[str, Any]) -> None:
        """Keep one image's results; one that cannot be drawn or written does not stop the rest."""
        try:
            self._keep(path, image, output)
        except _OF_ONE_IMAGE as error:
            self._fail(path, error)

    def _keep(self, path: Path, image: np.ndarray, output: dict[str, Any]) -> None:
        segments = segments_from_output(output, self.task, self.min_score)
        name = self._result_name(path)
        # Pictures before the entry: an image counts as done only when it has them.
        if self.overlay:
            save_image(self._draw(image, segments), self.output / self.pictures / f"{name}.jpg")
        if self.task == "panoptic":
            ids = panoptic_ids(segments, image.shape[:2])
            save_image(ids, self.output / "panoptic" / f"{name}.png")
            picture = coloured(segments, image.shape[:2])
            save_image(picture, self.output / "panoptic_coloured" / f"{name}.png")
        self._add(path, image, segments, name)

    def _add(
        self, path: Path, image: np.ndarray, segments: Sequence[Segment], name: str, **extra: Any
    ) -> None:
        """Count an image as done; `extra` goes into its entry."""
        size = image.shape[:2]
        self.predictions.add(file_name_of(path), size, segments, result_name=name, **extra)
        self._taken.add(name.casefold())
        self.done += 1

    def _draw(self, image: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
        visualizer = RoseVisualizer(image)
        if self.task == "referring" and segments:
            mask = np.any([segment.mask for segment in segments], axis=0)
            picture = visualizer.draw_referring(mask, self.question["refer"], segments[0].score)
        else:
            picture = visualizer.draw_segments(
                [segment.mask for segment in segments],
                [segment.category_name for segment in segments],
                [segment.name_score for segment in segments],
                is_thing=[segment.is_thing for segment in segments],
            )
        return picture.get_image()

    def _is_done(self, path: Path) -> bool:
        entry = self.predictions.find(file_name_of(path))
        if entry is None:
            return False
        wanted = [f"{self.pictures}/{entry['result_name']}.jpg"] if self.overlay else []
        wanted += [f"panoptic/{entry['result_name']}.png"] if self.task == "panoptic" else []
        return all((self.output / file).is_file() for file in wanted)

    def _result_name(self, path: Path) -> str:
        """The stem of this image's result files, which no other image has, on any file system."""
        entry = self.predictions.find(file_name_of(path))
        if entry is not None:
            return entry["result_name"]
        stem = result_stem(path.stem)
        with_folder = f"{Path(os.path.realpath(path)).parent.name}_{path.stem}"
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        names = itertools.chain([stem, result_stem(with_folder)], numbered)
        return next(name for name in names if name.casefold() not in self._taken)

    def _write_contact_sheet(self) -> None:
        entries = (self.predictions.find(file_name_of(path)) for path in self.images)
        shown = [entry for entry in entries if entry is not None][:_SHEET_PICTURES]
        files = [self.output / self.pictures / f"{entry['result_name']}.jpg" for entry in shown]
        pictures = []
        for file in files:
            with Image.open(file) as picture:
                pictures.append(np.asarray(picture))
        if pictures:
            captions = [Path(entry["file_name"]).name for entry in shown]
            save_image(contact_sheet(pictures, captions), self.output / "contact_sheet.jpg")

    def _report(self, interrupted: bool) -> None:
        earlier = len(self.images) - len(self.todo)
        print(
            f"{self.done} images {self.done_word}"
            + (f", {earlier} were done before" if earlier else "")
        )
        print(f"predictions:   {self.predictions.path}")
        if self.overlay and self.done + earlier:
            print(f"pictures:      {self.output / self.pictures}")
            print(f"contact sheet: {self.output / 'contact_sheet.jpg'}")
            print(f"gallery:       {self.output / 'gallery.html'}")
        if self.failures:
            print(f"{_count(len(self.failures))} could not be done:", file=sys.stderr)
            for reason in self.failures:
                print(f"  {reason}", file=sys.stderr)
        if interrupted:
            print("Interrupted; the same command continues.", file=sys.stderr)


def _count(images: int) -> str:
    return f"{images} image" if images == 1 else f"{images} images"
