"""One run of the demo: images in, pictures and a COCO-format file out, batch by batch."""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from files import coloured, file_name_of, readable, result_stem, save_image, segment_map
from gallery import write_gallery
from PIL import Image
from tqdm import tqdm

from rose_d2.config.fingerprint import config_hash, file_sha256
from rose_d2.config.read import read_released_config
from rose_d2.data.image_io import read_image
from rose_d2.files import FolderLock
from rose_d2.predictor.predictions_file import (
    IMAGE_FOLDER,
    PredictionsFile,
    Record,
    image_record,
    write_panoptic,
)
from rose_d2.predictor.predictor import RosePredictor, find_weights
from rose_d2.predictor.questions import resolve_task, segments_from_output
from rose_d2.predictor.sources import read_ahead
from rose_d2.structures.mask_codec import ids_to_colours
from rose_d2.structures.segments import Segment
from rose_d2.visualization.sheets import contact_sheet
from rose_d2.visualization.visualizer import RoseVisualizer

_SHEET_PICTURES = 40
# Processes that draw, if there are cores for them.
_ARTISTS = 3
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


# An image, its pixels, and what the model is given of it.
_Item = tuple[Path, np.ndarray, Any]


class FolderRun:
    """Segments images and keeps on disk what every batch gave, so that it can be continued.

    While the model works, the next images are read and prepared in a thread, and the results of
    the last ones are drawn and encoded in other processes, at most three batches of them.
    """

    pictures = "overlays"
    progress_name = "segmentation"
    done_word = "segmented"
    batch_size = 1
    task: str | None = None
    # Line of the terminal for the progress, counted from the cursor.
    bar = 0
    interrupted = False

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
        folder: Path | None = None,
        share: tuple[int, int] | None = None,
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
            folder: file names in the results are relative to it; None: to the working directory.
            share: (i, n): do every nth image from the ith on, and leave it to a run without
                `share` to join the results.

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
        self._open(
            images, output, cfg, info,
            overwrite=overwrite, overlay=overlay, folder=folder, share=share,
        )  # fmt: skip

    def _open(
        self,
        images: Sequence[Path],
        output: Path,
        cfg: CfgNode,
        info: dict[str, Any],
        *,
        overwrite: bool,
        overlay: bool,
        folder: Path | None,
        share: tuple[int, int] | None,
    ) -> None:
        """Open the file of predictions and find what is left to do."""
        self.output, self.overlay, self.share = output, overlay, share
        self.cfg = cfg
        self.done = 0
        self.failures: list[str] = []
        self._artist: Executor | None = None
        self._drawn: deque[tuple[Path, np.ndarray, Any, Future[Record]]] = deque()
        if folder is not None:
            info = {**info, IMAGE_FOLDER: file_name_of(folder)}
        part = None if share is None else "{}-of-{}".format(*share)
        self._lock = FolderLock(output, purpose="--output", part=part)
        try:
            self.predictions = PredictionsFile.open(
                output / "predictions.json", info, overwrite=overwrite, share=share or (0, 1)
            )
            self._name_all(images)
            mine = self.images if share is None else self.images[share[0] :: share[1]]
            self.todo = [image for image in mine if overwrite or not self._is_done(image)]
            self.earlier = len(mine) - len(self.todo)
        except BaseException:
            self._lock.release()
            raise

    def _name_all(self, images: Sequence[Path]) -> None:
        """Give every image its file name and the stem of its results, also those of other shares.

        Raises:
            ValueError: the folder that names are relative to is not there any more.
        """
        folder = self.predictions.info.get(IMAGE_FOLDER)
        if folder is not None and not os.path.isdir(folder):
            raise ValueError(
                f"{self.predictions.path} is of images in {folder!r}, which is not there: work "
                "from the same folder as before, or choose another --output."
            )
        root = None if folder is None else Path(folder)
        self._file_names = {image: file_name_of(image, root) for image in images}
        self.images = list(self._file_names)
        users: dict[str, list[str]] = {}
        for entry in self.predictions.images():
            users.setdefault(entry["result_name"].casefold(), []).append(entry["file_name"])
        # Shares of different lists of images may have drawn over each other.
        for clashing in (names for names in users.values() if len(names) > 1):
            for name in clashing:
                self.predictions.forget(name)
        taken = {entry["result_name"].casefold() for entry in self.predictions.images()}
        self._result_names: dict[Path, str] = {}
        for image, file_name in self._file_names.items():
            entry = self.predictions.find(file_name)
            name = entry["result_name"] if entry is not None else _free_name(image, taken)
            taken.add(name.casefold())
            self._result_names[image] = name

    def load(self) -> None:
        """Load the model, and see that the results can be written, before the work.

        Raises:
            ValueError: weights and config do not fit.
            OSError: the folder cannot be written.
        """
        if not self.todo:
            return
        try:
            if len(self.todo) > self.batch_size:
                self._artist = _artist(self)  # before there is a model, of which it gets nothing
            self.predictor = RosePredictor(self.cfg)
            self.predictions.begin()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the folder to other runs."""
        if self._artist is not None:
            self._artist.shutdown(cancel_futures=True)
        self.predictions.close()
        self._lock.release()

    def run(self, *, report: bool = True) -> int:
        """Segment what is not done yet and report.

        Args:
            report: say what was done and what could not be.

        Returns:
            The exit status: 0, 1 if images failed, 130 if it was interrupted.
        """
        try:
            self._work()
            if report:
                self._report()
        except OSError as error:  # of the disk: no other file would fare better
            print(f"demo.py: error: {error}; the same command continues.", file=sys.stderr)
            return 1
        finally:
            self.close()
        return 130 if self.interrupted else int(bool(self.failures))

    def _work(self) -> None:
        """Do what is not done yet, with its pictures."""
        try:
            if self.todo:
                self._segment_all()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            if self.share is None:
                self._join()

    def _join(self) -> None:
        """Make the files about all images of what this run, and others in this folder, wrote."""
        panoptic = self.output / "panoptic.json" if self.task == "panoptic" else None
        if self.predictions.is_joined and (panoptic is None or panoptic.is_file()):
            return
        order = [self._file_names[image] for image in self.images]
        if panoptic is not None:
            records = self.predictions.records(order)
            write_panoptic(panoptic, self.predictions.info, records)
        self.predictions.finish(order)
        if self.overlay and len(self.predictions):
            try:
                self._write_contact_sheet()
                write_gallery(self.output, self.pictures, self.predictions)
            except _OF_ONE_IMAGE as error:
                self.failures.append(f"the contact sheet or the gallery: {error}")

    def _segment_all(self) -> None:
        of_all = "" if self.share is None else " {}/{}".format(*self.share)
        with tqdm(
            total=len(self.todo),
            desc=f"{self.progress_name}{of_all}",
            unit="image",
            position=self.bar,
        ) as progress:
            readable = self._read_all(progress)
            try:
                while batch := list(itertools.islice(readable, self.batch_size)):
                    for (path, image, _), output in zip(batch, self._predict(batch), strict=True):
                        if output is not None:
                            self._try_to_keep(path, image, output)
                    self._take_drawn(max(2 * self.batch_size, _ARTISTS))
                    progress.update(len(batch))
            finally:
                self._take_drawn(0)

    def _read_all(self, progress: tqdm) -> Iterator[_Item]:
        for path, image, prepared in read_ahead(map(self._read, self.todo), self.batch_size):
            if isinstance(prepared, Exception):
                self._fail(path, prepared)
                progress.update()
                continue
            yield path, image, prepared

    def _read(self, path: Path) -> _Item:
        """In the reading thread; the last entry is an error where the image cannot be used."""
        try:
            image = read_image(str(path), max_pixels=self.cfg.INPUT.MAX_PIXELS)
            return path, image, self._prepare(image)
        except (*_OF_ONE_IMAGE, OSError) as error:
            return path, np.empty(0), error

    def _prepare(self, image: np.ndarray) -> Any:
        """What the model is given."""
        return self.predictor.make_input(image, **{**self.question, "task": self.task})

    def _predict(self, batch: list[_Item]) -> list[dict[str, Any] | None]:
        """Outputs of a batch; None for an image that the model fails on even alone."""
        try:
            return self.predictor.predict_batch([item for *_, item in batch], **self.question)
        except _OF_ONE_IMAGE as error:
            if len(batch) == 1:
                self._fail(batch[0][0], error)
                return [None]
        return [self._predict([item])[0] for item in batch]

    def _one_by_one(
        self,
        batch: list[_Item],
        answer: Callable[[Path, np.ndarray], dict[str, Any]],
    ) -> list[dict[str, Any] | None]:
        """Outputs of a batch whose images have a session each; None for one that failed."""
        outputs: list[dict[str, Any] | None] = []
        for path, image, _ in batch:
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
            found = self._found(output)
            if self._artist is None:
                self._add(self.write(path, image, found))
                return
        except _OF_ONE_IMAGE as error:
            self._fail(path, error)
            return
        try:
            future = self._artist.submit(_write, path, image, found)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        self._drawn.append((path, image, found, future))

    def _take_drawn(self, most: int) -> None:
        """Count as done, in order, what is drawn, and wait until at most so many are not."""
        while self._drawn and (len(self._drawn) > most or self._drawn[0][-1].done()):
            path, image, found, future = self._drawn.popleft()
            try:
                self._add(self._record_of(path, image, found, future))
            except _OF_ONE_IMAGE as error:
                self._fail(path, error)

    def _record_of(
        self, path: Path, image: np.ndarray, found: Any, future: Future[Record]
    ) -> Record:
        try:
            return future.result()
        except BrokenProcessPool:  # somebody has killed the process: without it, then
            self._artist = None
            return self.write(path, image, found)

    def _found(self, output: dict[str, Any]) -> Any:
        """What `write` needs of an output."""
        return segments_from_output(output, self.task, self.min_score)

    def write(self, path: Path, image: np.ndarray, found: Any) -> Record:
        """Write the pictures of an image, and return its entry, which comes after them."""
        name = self._result_names[path]
        if self.overlay:
            save_image(self._draw(image, found), self.output / self.pictures / f"{name}.jpg")
        if self.task == "panoptic":
            ids = segment_map(found, image.shape[:2])
            save_image(ids_to_colours(ids), self.output / "panoptic" / f"{name}.png")
            save_image(coloured(found, ids), self.output / "panoptic_coloured" / f"{name}.png")
        return self._record(path, image, found)

    def _record(
        self, path: Path, image: np.ndarray, segments: Sequence[Segment], **extra: Any
    ) -> Record:
        """The entry of an image; `extra` goes into it."""
        name = self._result_names[path]
        size = image.shape[0], image.shape[1]
        return image_record(self._file_names[path], size, segments, result_name=name, **extra)

    def _add(self, record: Record) -> None:
        """Count an image as done."""
        self.predictions.add_record(record)
        self.done += 1

    def _draw(self, image: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
        visualizer = RoseVisualizer(image)
        if self.task == "referring" and segments:
            mask = np.any([segment.mask for segment in segments], axis=0)
            picture = visualizer.draw_referring(mask, self.question["refer"])
        else:
            picture = visualizer.draw_segments(
                [segment.mask for segment in segments],
                [segment.category_name for segment in segments],
                [segment.name_score for segment in segments],
                is_thing=[segment.is_thing for segment in segments],
            )
        return picture.get_image()

    def _is_done(self, path: Path) -> bool:
        entry = self.predictions.find(self._file_names[path])
        if entry is None:
            return False
        wanted = [f"{self.pictures}/{entry['result_name']}.jpg"] if self.overlay else []
        wanted += [f"panoptic/{entry['result_name']}.png"] if self.task == "panoptic" else []
        return all((self.output / file).is_file() for file in wanted)

    def _write_contact_sheet(self) -> None:
        entries = (self.predictions.find(self._file_names[path]) for path in self.images)
        shown = [entry for entry in entries if entry is not None][:_SHEET_PICTURES]
        files = [self.output / self.pictures / f"{entry['result_name']}.jpg" for entry in shown]
        pictures = []
        for file in files:
            with Image.open(file) as picture:
                pictures.append(np.asarray(picture))
        if pictures:
            captions = [Path(entry["file_name"]).name for entry in shown]
            save_image(contact_sheet(pictures, captions), self.output / "contact_sheet.jpg")

    def _report(self) -> None:
        print(
            f"{self.done} images {self.done_word}"
            + (f", {self.earlier} were done before" if self.earlier else "")
        )
        if self.share is not None:
            print("When all shares are done, the same command without --shard joins them.")
        else:
            print(f"predictions:   {self.predictions.path}")
        if self.share is None and self.overlay and self.done + self.earlier:
            print(f"pictures:      {self.output / self.pictures}")
            print(f"contact sheet: {self.output / 'contact_sheet.jpg'}")
            print(f"gallery:       {self.output / 'gallery.html'}")
        if self.failures:
            print(f"{_count(len(self.failures))} could not be done:", file=sys.stderr)
            for reason in self.failures:
                print(f"  {reason}", file=sys.stderr)
        if self.interrupted:
            print("Interrupted; the same command continues.", file=sys.stderr)


# Of the process that draws: whose results.
_run: FolderRun | None = None


def _artist(run: FolderRun) -> Executor:
    """Processes that call `_write`; a thread where processes cannot be forked."""
    if sys.platform != "linux":
        return ThreadPoolExecutor(1, "drawing", _begin_to_draw, (run,))
    count = max(1, min(_ARTISTS, len(os.sched_getaffinity(0)) - 1))
    context = multiprocessing.get_context("fork")
    artist = ProcessPoolExecutor(count, context, _begin_to_draw, (run,))
    artist.submit(int)  # starts them
    return artist


def _begin_to_draw(run: FolderRun) -> None:
    global _run
    _run = run
    parent = multiprocessing.parent_process()
    if parent is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # which interrupts the parent
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A killed process leaves no other behind."""
    parent.join()
    os._exit(1)


def _write(path: Path, image: np.ndarray, found: Any) -> Record:
    assert _run is not None
    try:
        return _run.write(path, image, found)
    except _OF_ONE_IMAGE as error:  # as one that can be sent
        raise RuntimeError(str(error) or type(error).__name__) from None


def _free_name(path: Path, taken: Collection[str]) -> str:
    """A stem for an image's result files, which no other image has, on any file system."""
    stem = result_stem(path.stem)
    with_folder = f"{Path(os.path.realpath(path)).parent.name}_{path.stem}"
    numbered = (f"{stem}_{number}" for number in itertools.count(2))
    names = itertools.chain([stem, result_stem(with_folder)], numbered)
    return next(name for name in names if name.casefold() not in taken)


def _count(images: int) -> str:
    return f"{images} image" if images == 1 else f"{images} images"
