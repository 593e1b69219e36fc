"""One run of `demo.py --name-masks` or `--name-boxes`: regions in, their generated names out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from files import file_name_of, save_image
from folder_run import FolderRun
from refine_run import CocoMasks, read_masks

from rose_d2.config.fingerprint import config_hash, file_sha256
from rose_d2.config.read import read_released_config
from rose_d2.predictor.predictions_file import Record
from rose_d2.predictor.predictor import find_weights
from rose_d2.structures.segments import Segment


class CocoBoxes(CocoMasks):
    """The boxes of a COCO file, found by the file name of their image."""

    def of(self, path: Path, file_name: str, size: tuple[int, int]) -> list[np.ndarray]:
        """The boxes of one image, (x1, y1, x2, y2) in pixels.

        Raises:
            ValueError: the file does not know the image, or an entry has no box.
        """
        boxes = []
        for entry in self._entries[self._key_of(path, file_name)]:
            values = np.asarray(entry.get("bbox", ()))
            if values.shape != (4,) or values.dtype.kind not in "fiu":
                raise ValueError(
                    f"{self.path} has an annotation of {path.name} without a bbox of four numbers "
                    "(x, y, width, height)."
                )
            x, y, width, height = values.tolist()
            boxes.append(np.array([x, y, x + width, y + height], dtype=np.float64))
        return boxes


class NameRun(FolderRun):
    """Names regions that exist, image by image, in one session an image."""

    pictures = "named"
    progress_name = "naming"
    done_word = "named"

    def __init__(
        self,
        images: Sequence[Path],
        *,
        output: Path,
        config_file: str,
        masks: Path | None = None,
        boxes: Path | None = None,
        opts: Sequence[str] = (),
        overwrite: bool = False,
        overlay: bool = True,
        folder: Path | None = None,
        share: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            images: the images of the regions.
            output: folder of the results.
            config_file: a ROSE config.
            masks: a COCO file or a folder of label PNGs, whose masks are named and stay.
            boxes: a COCO file, whose boxes are named and get masks; one of the two.
            opts: changes to the config, KEY VALUE KEY VALUE.
            overwrite: redo images that have their result.
            overlay: draw pictures.
            folder: see `FolderRun`, as `share`.
            share: part of the images.

        Raises:
            ValueError: options, regions or config do not fit, or `output` holds other results.
            OSError: config or weights do not exist.
        """
        if boxes is not None:
            source, self.regions = boxes, CocoBoxes(boxes)
        else:
            source, self.regions = masks, read_masks(masks)
        cfg = read_released_config(config_file, opts, min_score=0.0)
        info = {
            "description": "Regions named by ROSE (rose_d2)",
            "regions": file_name_of(source),
            "by": "masks" if boxes is None else "boxes",
            "regions_sha256": file_sha256(str(source)) if source.is_file() else None,
            "config_hash": config_hash(cfg),
            "weights_sha256": file_sha256(find_weights(cfg)),
        }
        self._open(
            images, output, cfg, info,
            overwrite=overwrite, overlay=overlay, folder=folder, share=share,
        )  # fmt: skip

    def _prepare(self, image: np.ndarray) -> None:
        """Sessions prepare their images themselves."""

    def _predict(self, batch: list[tuple[Path, np.ndarray, Any]]) -> list[dict[str, Any] | None]:
        return self._one_by_one(batch, self._name)

    def _name(self, path: Path, image: np.ndarray) -> dict[str, Any]:
        """The named segments of an image."""
        regions = self.regions.of(path, self._file_names[path], image.shape[:2])
        session = self.predictor.open(image)
        named: list[Segment] = []
        for region in regions:
            named += session.name(region.mask if isinstance(region, Segment) else region)
        return {"segments": named}

    def _found(self, output: dict[str, Any]) -> list[Segment]:
        segments: list[Segment] = output["segments"]
        return segments

    def write(self, path: Path, image: np.ndarray, found: list[Segment]) -> Record:
        """Write a picture, and return the entry."""
        if self.overlay:
            name = self._result_names[path]
            save_image(self._draw(image, found), self.output / self.pictures / f"{name}.jpg")
        return self._record(path, image, found)
