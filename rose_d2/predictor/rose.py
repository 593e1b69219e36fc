"""Rose: a trained model in one line, for anything that holds an image."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub
import numpy as np
import torch
from detectron2.config import CfgNode

from rose_d2.checkpoint.export import export_merged
from rose_d2.config.read import read_config
from rose_d2.config.released import RELEASED_MODELS, find_config, released_weights
from rose_d2.predictor.predictor import RosePredictor, find_weights
from rose_d2.predictor.questions import resolve_task, segments_from_output
from rose_d2.predictor.results import Results
from rose_d2.predictor.session import RoseSession
from rose_d2.predictor.sources import (
    describe_source,
    images_of_folder,
    in_batches,
    is_url,
    read_ahead,
    read_source,
)

logger = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CONFIG_NAME = "config.yaml"


class Rose:
    """A trained model. `RosePredictor` is the detectron2-style layer beneath.

    Example:
        >>> from rose_d2 import Rose
        >>> rose = Rose.from_pretrained("tiny")
        >>> results = rose("photo.jpg")
        >>> rose("photo.jpg", refer="the dog on the left").save("dog.jpg")
        >>> for results in rose("photos/", vocabulary=["dog", "cat"]):
        ...     print(results.path, results.names)
    """

    def __init__(self, predictor: RosePredictor, *, min_score: float = 0.5) -> None:
        """
        Args:
            predictor: does the work.
            min_score: segments of lower objectness are left out; should be the config's
                thresholds, as `from_pretrained` sees to.
        """
        self.predictor = predictor
        self.min_score = min_score

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "tiny",
        *,
        device: str | None = None,
        min_score: float = 0.5,
        opts: Sequence[Any] = (),
        **hub: Any,
    ) -> Rose:
        """Load a model.

        Args:
            name: "tiny", the model that comes with the package; a folder with `config.yaml` and
                weights (an export, or the OUTPUT_DIR of a training); or the name of such a
                repository on the Hugging Face hub, "user/model".
            device: "cpu", "cuda", "cuda:1"; None takes a GPU if there is one.
            min_score: smallest objectness of a segment, 0 to 1.
            opts: changes to the config, KEY, VALUE, KEY, VALUE.
            hub: of `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`,
                `local_files_only`, `endpoint`.

        Raises:
            ValueError: there is no such model, or the weights do not fit the config.
            FileNotFoundError: the folder has no weights.
        """
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score {min_score} is not in 0 to 1.")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        config_file, weights = _find_model(str(name), hub)
        cfg = read_config(
            config_file, ["MODEL.WEIGHTS", weights, *opts, "MODEL.DEVICE", str(device)]
        )
        cfg.TEST.SCORE_THRESH = cfg.TEST.PANOPTIC.SCORE_THRESH = min_score
        cfg.freeze()
        return cls(RosePredictor(cfg), min_score=min_score)

    @property
    def cfg(self) -> CfgNode:
        """The config of the model."""
        return self.predictor.cfg

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.predictor.model.parameters()).device

    def __call__(
        self,
        source: Any,
        *,
        task: str | None = None,
        refer: str | None = None,
        vocabulary: Sequence[str] | None = None,
        boxes: Sequence[Sequence[float]] | None = None,
        batch_size: int = 1,
    ) -> Results | list[Results] | Iterator[Results]:
        """Segment images.

        Args:
            source: a path, an http(s) address, a PIL image or a uint8 array (H, W, 3), RGB; a
                list of these; or a folder.
            task: "semantic", "instance" or "panoptic" (the default).
            refer: asks for the one object this describes.
            vocabulary: names to choose from; None lets the model name things freely.
            boxes: asks what is in each box (x1, y1, x2, y2), in pixels.
            batch_size: images a call of the model, for lists and folders.

        Returns:
            Results of one image; a list of them for a list; for a folder an iterator, which reads
            images only when it comes to them and passes over unreadable ones with a warning.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no image, or the options contradict each other.
        """
        if boxes is not None and (task, refer, vocabulary) != (None, None, None):
            raise ValueError("boxes ask what is in them, without task, refer or vocabulary.")
        if isinstance(vocabulary, str):
            vocabulary = [name.strip() for name in vocabulary.split(",") if name.strip()]
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1.")
        question = {"task": task, "refer": refer, "candidates": vocabulary}
        resolve_task(**question)
        if isinstance(source, str | Path) and not is_url(source):
            folder = Path(source).expanduser()
            if folder.is_dir():
                found = _readable(images_of_folder(folder))
                return self._stream(found, question, boxes, batch_size)
        if isinstance(source, list | tuple):
            named = ((describe_source(item), read_source(item)) for item in source)
            return list(self._stream(named, question, boxes, batch_size))
        named = iter([(describe_source(source), read_source(source))])
        return next(self._stream(named, question, boxes, 1))

    def open(self, source: Any) -> RoseSession:
        """Begin a conversation about an image, in which results can be repaired.

        Args:
            source: one image, as for a call.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no image.
        """
        return self.predictor.open(read_source(source))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` reads and needs nothing else, LoRA merged.

        Raises:
            ValueError: the folder is there and not empty.
        """
        weights = find_weights(self.cfg)
        export_merged(self.cfg, self.predictor.model, weights, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        commit_message: str = "Upload a ROSE model",
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub.

        Args:
            repo_id: "user/model"; made if it is not there.
            token: of the hub; None takes the one of `hf auth login`.
            private: of a new repository; None is the account's default.
            commit_message: of the upload.

        Returns:
            The address of the commit.
        """
        api = huggingface_hub.HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as parent:
            folder = Path(parent) / repo_id.split("/")[-1]
            self.save_pretrained(folder)
            commit = api.upload_folder(
                repo_id=repo.repo_id, folder_path=folder, commit_message=commit_message
            )
        return str(commit.commit_url)

    def _stream(
        self,
        named: Iterator[tuple[str | None, np.ndarray]],
        question: dict[str, Any],
        boxes: Sequence[Sequence[float]] | None,
        batch_size: int,
    ) -> Iterator[Results]:
        task = resolve_task(**question)
        if boxes is not None:
            for path, image in named:
                session = self.predictor.open(image)
                found = tuple(segment for box in boxes for segment in session.name(box))
                yield Results(session.image, found, "region", path)
            return
        words = {**question, "task": task}
        made = ((path, image, self.predictor.make_input(image, **words)) for path, image in named)
        for batch in in_batches(read_ahead(made, batch_size), batch_size):
            outputs = self.predictor.predict_batch([item for *_, item in batch], **question)
            for (path, image, _), output in zip(batch, outputs, strict=True):
                found = segments_from_output(output, task, self.min_score)
                yield Results(image, tuple(found), task, path, question["refer"])


def _readable(files: Sequence[Path]) -> Iterator[tuple[str, np.ndarray]]:
    for file in files:
        try:
            yield str(file), read_source(file)
        except (ValueError, OSError) as error:
            logger.warning("Passed over: %s", error)


def _find_model(name: str, hub: dict[str, Any]) -> tuple[str, str]:
    """Config file and MODEL.WEIGHTS of a name; see `Rose.from_pretrained`."""
    if name in RELEASED_MODELS:
        config = RELEASED_MODELS[name]
        return find_config(config), str(released_weights(config))
    folder = Path(name).expanduser()
    if not folder.is_dir() and _HUB_NAME.fullmatch(name) and not folder.parent.is_dir():
        folder = Path(huggingface_hub.snapshot_download(name, **hub))
    if not folder.is_dir():
        raise ValueError(
            f"There is no model {name!r}: give one of {', '.join(RELEASED_MODELS)}, a folder with "
            f"{_CONFIG_NAME} and weights, or 'user/model' of the Hugging Face hub."
        )
    # A checkpoint of a training stands beside the config of the run.
    for place in (folder, folder.parent):
        if (place / _CONFIG_NAME).is_file():
            return str(place / _CONFIG_NAME), str(folder)
    raise ValueError(
        f"{folder} has no {_CONFIG_NAME}; give an exported folder or the OUTPUT_DIR of a training."
    )
