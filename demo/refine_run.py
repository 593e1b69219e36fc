"""One run of `demo.py --refine`: masks in, better masks and before / after pictures out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from files import file_name_of, save_image
from folder_run import FolderRun
from PIL import Image

from rose_d2.config.fingerprint import config_hash, file_sha256
from rose_d2.config.read import read_released_config
from rose_d2.data.coco_files import plain_id, read_coco, read_json
from rose_d2.data.image_io import opened_image
from rose_d2.files import write_table
from rose_d2.predictor.predictions_file import IMAGE_FOLDER, Record
from rose_d2.predictor.predictor import find_weights
from rose_d2.predictor.session_instructions import check_text
from rose_d2.structures.mask_codec import colours_to_ids, decode_mask
from rose_d2.structures.segments import Segment
from rose_d2.visualization.sheets import contact_sheet
from rose_d2.visualization.visualizer import RoseVisualizer

_NO_MASKS = (
    "{!r} is not a COCO file of masks: give an object with "
    '"images" (file_name) and "annotations", or a list of results with a "file_name" or '
    '"image_id" each.'
)
_VOID = 255
# Details below this share of a mask's radius (that of a circle of its area) count as rough.
_DETAIL = 0.1
# Side of a picture, before or after, in pixels.
_PANEL = 480
_ADDED, _TAKEN = (40, 190, 80), (220, 50, 40)
_COLUMNS = (
    "image",
    "segment_id",
    "iou_before_after",
    "true_iou_before",
    "true_iou_after",
    "name_before",
    "name_after",
    "score_before",
    "score_after",
    "instruction",
)


class CocoMasks:
    """The masks of a COCO file, found by the file name of their image.

    Taken are an object with "images" and "annotations", as `demo.py` and most tools write it, and
    a bare list of results whose entries have a "file_name", or an "image_id" that is the number in
    the image's file name (as in COCO: 139 for 000000000139.jpg).
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: the JSON file.

        Raises:
            ValueError: it is not such a file.
        """
        self.path = path
        self.num_without_mask = 0
        self._names: dict[Any, str] = {}
        self._file_names: dict[Any, str] = {}
        self._folder: Path | None = None
        entries = read_json(path)
        is_object = isinstance(entries, dict) and {"images", "annotations"} <= set(entries)
        if not is_object and not isinstance(entries, list):
            raise ValueError(_NO_MASKS.format(str(path)))
        if not isinstance(entries, list):
            coco = read_coco(path, needed=("images", "annotations"))
            info = entries.get("info")
            if isinstance(info, dict) and isinstance(info.get(IMAGE_FOLDER), str):
                self._folder = Path(info[IMAGE_FOLDER])
            self._names = coco.category_names
            self._file_names = {i: image.file_name for i, image in coco.images.items()}
            entries = coco.annotations
        self._entries: dict[str, list[dict[str, Any]]] = {
            name: [] for name in self._file_names.values()
        }
        for entry in entries:
            if not isinstance(entry, dict) or not {"file_name", "image_id"} & set(entry):
                raise ValueError(_NO_MASKS.format(str(path)))
            self._entries.setdefault(self._image_of(entry), []).append(entry)
        if entries and self._file_names and not any(map(self._entries.get, self._known())):
            raise ValueError(
                f"{str(path)!r}: none of its {len(entries)} annotations belongs to one of "
                f"its {len(self._file_names)} images; their image_id and the images' id differ."
            )

    def of(self, path: Path, file_name: str, size: tuple[int, int]) -> list[Segment]:
        """Return the masks of one image.

        Args:
            path: the image.
            file_name: its name as `demo.py` writes it.
            size: its (height, width).

        Raises:
            ValueError: the file does not know the image, or a mask does not fit it.
        """
        entries = self._entries[self._key_of(path, file_name)]
        return [segment for entry in entries if (segment := self._segment(entry, size)) is not None]

    def _known(self) -> list[str]:
        return list(self._file_names.values())

    def _image_of(self, entry: dict[str, Any]) -> str:
        if isinstance(entry.get("file_name"), str):
            return entry["file_name"]
        image_id = plain_id(entry.get("image_id"))
        return str(self._file_names.get(image_id, image_id))

    def _key_of(self, path: Path, file_name: str) -> str:
        # In its own way of naming, in that of this run, and in that of earlier versions.
        for exact in (file_name_of(path, self._folder), file_name, file_name_of(path)):
            if exact in self._entries:
                return exact
        number = str(int(path.stem)) if path.stem.isdecimal() else path.stem
        for wanted in ({path.name}, {path.stem, number}):
            known = [k for k in self._entries if k.replace("\\", "/").split("/")[-1] in wanted]
            if len(known) > 1:
                raise ValueError(f"{self.path} has several images called {path.name}.")
            if known:
                return known[0]
        raise ValueError(f"{self.path} has no image of this name.")

    def _segment(self, entry: dict[str, Any], size: tuple[int, int]) -> Segment | None:
        try:
            mask = decode_mask(entry.get("segmentation"), *size)
        except ValueError as error:
            raise ValueError(f"a mask to refine does not fit ({error})") from error
        if not mask.any():
            self.num_without_mask += 1
            return None
        name = entry.get("category_name", self._names.get(plain_id(entry.get("category_id")), ""))
        return Segment(
            mask,
            str(name or ""),
            _number(entry, "score", 1.0),
            _number(entry, "name_score", None),
            bool(entry.get("isthing", 1)),
        )


def _number(entry: dict[str, Any], key: str, default: float | None) -> Any:
    """A finite number of an entry; the default where it is missing or null.

    Raises:
        ValueError: it is anything else.
    """
    value = entry.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a mask to refine has the {key} {value!r}, which is no number")
    return float(value)


class LabelMasks:
    """A folder of label PNGs named like their images; every value in one is a nameless segment.

    Grey and palette PNGs: 0 is background and 255 void (unless the PNG holds only 0 and 255).
    Colour PNGs are read as COCO panoptic ones: id = R + 256 G + 65536 B, 0 is background.
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: has a PNG `STEM.png` for the image `STEM.jpg`.

        Raises:
            ValueError: there is no PNG in it.
        """
        self.folder = folder
        self._files = {file.stem: file for file in sorted(folder.glob("*.png"))}
        if not self._files:
            raise ValueError(f"{str(folder)!r} is a folder without label PNGs.")

    def of(self, path: Path, file_name: str, size: tuple[int, int]) -> list[Segment]:
        """Return the masks of one image; see `CocoMasks.of`."""
        if path.stem not in self._files:
            raise ValueError(f"{self.folder} has no {path.stem}.png.")
        file = self._files[path.stem]
        with opened_image(str(file)) as png:
            labels = _labels(png)
        if labels.shape != size:
            raise ValueError(f"{file} is {labels.shape} (height, width), the image {size}.")
        return [Segment(labels == value, "", 1.0) for value in np.unique(labels[labels > 0])]


def read_masks(path: Path) -> CocoMasks | LabelMasks:
    """Open what `--refine` names.

    Raises:
        ValueError: it does not exist or is neither a COCO file nor a folder of PNGs.
    """
    if path.is_dir():
        return LabelMasks(path)
    if not path.is_file():
        raise ValueError(f"--refine {str(path)!r} does not exist.")
    return CocoMasks(path)


def _labels(png: Image.Image) -> np.ndarray:
    """Return ids (H, W), 0 where nothing is."""
    values = np.asarray(png).astype(np.int64)
    if values.ndim == 3:
        return values[:, :, 0] if values.shape[2] < 3 else colours_to_ids(values)
    if png.mode in ("L", "P") and not set(np.unique(values).tolist()) <= {0, _VOID}:
        values[values == _VOID] = 0
    return values


def choose_segments(segments: Sequence[Segment], policy: str, count: int) -> list[int]:
    """Choose what to refine.

    Args:
        segments: of one image.
        policy: one of `demo.POLICIES`. "lowest-score": those the model was least sure
            of; "uncertain-boundary": those with the roughest outline, see `outline_roughness`.
        count: at most so many, except for "all".

    Returns:
        Positions, in the order in which they are refined.
    """
    if policy == "all":
        return list(range(len(segments)))
    if policy == "lowest-score":
        worst_first = sorted(range(len(segments)), key=lambda i: segments[i].score)
    else:
        roughness = [outline_roughness(segment.mask) for segment in segments]
        worst_first = sorted(range(len(segments)), key=lambda i: -roughness[i])
    return worst_first[:count]


def outline_roughness(mask: np.ndarray) -> float:
    """Measure how much of a mask is holes, specks and fringes.

    A file of masks has no logits, so the outline itself has to tell where its maker was unsure:
    the mask is smoothed over a tenth of its radius to all sides, and the pixels that change are
    counted. Thin objects count as rough too.

    Args:
        mask: bool (H, W) with at least one pixel.

    Returns:
        Changed pixels over the mask's pixels, at most 1.
    """
    area = np.count_nonzero(mask)
    radius = max(1, round(_DETAIL * np.sqrt(area / np.pi)))
    side = 2 * radius + 1
    smooth = cv2.blur(mask.astype(np.float32), (side, side), borderType=cv2.BORDER_REPLICATE) >= 0.5
    return min(1.0, np.count_nonzero(smooth != mask) / area)


class RefineRun(FolderRun):
    """Refines masks that exist, image by image, in one session an image."""

    pictures = "before_after"
    progress_name = "refinement"
    done_word = "refined"

    def __init__(
        self,
        images: Sequence[Path],
        *,
        output: Path,
        config_file: str,
        masks: Path,
        opts: Sequence[str] = (),
        instruction: str | None = None,
        policy: str | None = None,
        count: int = 3,
        truth: Path | None = None,
        overwrite: bool = False,
        overlay: bool = True,
        folder: Path | None = None,
        share: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            images: the images of the masks.
            output: folder of the results.
            config_file: a ROSE config.
            masks: a COCO file or a folder of label PNGs.
            opts: changes to the config, KEY VALUE KEY VALUE.
            instruction: what is wrong, in words; None takes the trained words for a bad mask.
            policy: one of `demo.POLICIES`; None: "all" with an instruction, else
                "lowest-score".
            count: segments an image that a policy chooses.
            truth: true masks, in the forms of `masks`, to measure with; nothing is chosen by them.
            overwrite: redo images that have their result.
            overlay: draw pictures.
            folder: see `FolderRun`, as `share`.
            share: part of the images.

        Raises:
            ValueError: options, masks or config do not fit, or `output` holds other results.
            OSError: config or weights do not exist.
        """
        self.instruction = None if instruction is None else check_text(instruction)
        self.policy = policy or ("lowest-score" if instruction is None else "all")
        self.count = count
        self.masks = read_masks(masks)
        self.truth = None if truth is None else read_masks(truth)
        cfg = read_released_config(config_file, opts, min_score=0.0)
        info = {
            "description": "Segments refined by ROSE (rose_d2)",
            "refine": file_name_of(masks),
            "refine_sha256": file_sha256(str(masks)) if masks.is_file() else None,
            "instruction": self.instruction,
            "policy": self.policy,
            "count": None if self.policy == "all" else count,
            **({} if truth is None else {"truth": file_name_of(truth)}),
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
        return self._one_by_one(batch, self._refine)

    def _refine(self, path: Path, image: np.ndarray) -> dict[str, Any]:
        """All segments before and after, and which were refined."""
        where = path, self._file_names[path], image.shape[:2]
        before = self.masks.of(*where)
        truth = self.truth.of(*where) if self.truth is not None else []
        session = self.predictor.open(image)
        added = session.add(*before) if before else ()
        after: list[Segment] = list(added)
        chosen = choose_segments(added, self.policy, self.count)
        for position in chosen:
            answer = session.refine(added[position], self.instruction)
            after[position] = answer[0]
        return {"before": before, "after": after, "chosen": chosen, "truth": truth}

    def _found(self, output: dict[str, Any]) -> dict[str, Any]:
        return output

    def write(self, path: Path, image: np.ndarray, found: dict[str, Any]) -> Record:
        """Write a picture of both sides, and return the entry."""
        before, after, chosen = found["before"], found["after"], found["chosen"]
        name = self._result_names[path]
        changes = [_change(i + 1, before[i], after[i], found["truth"]) for i in sorted(chosen)]
        if self.overlay:
            panels = [_drawn(image, [side[i] for i in chosen]) for side in (before, after)]
            panels.append(_changed(image, [(before[i], after[i]) for i in chosen]))
            captions = [_caption("before", changes), _caption("after", changes)]
            captions.append("green: added, red: taken away")
            picture = contact_sheet(panels, captions, columns=3, cell=_PANEL)
            save_image(picture, self.output / self.pictures / f"{name}.jpg")
        return self._record(path, image, after, refinements=changes)

    def _report(self) -> None:
        if self.share is not None:
            super()._report()
            return
        rows = [
            {"image": entry["file_name"], "instruction": self.instruction or "", **change}
            for entry in self.predictions.images()
            for change in entry.get("refinements", ())
        ]
        if self.predictions.images():
            write_table(self.output / "changes.csv", _COLUMNS, rows)
        super()._report()
        if skipped := getattr(self.masks, "num_without_mask", 0):
            print(f"{skipped} objects of {self.masks.path} have a box but no mask: left out")
        if not rows:
            print("nothing was refined: the images have no masks")
            return
        renamed = [row for row in rows if row["name_before"] != row["name_after"]]
        ious = [row["iou_before_after"] for row in rows]
        print(f"changes:       {self.output / 'changes.csv'}")
        print(
            f"{len(rows)} segments refined; IoU between before and after: mean "
            f"{np.mean(ious):.3f}, lowest {min(ious):.3f}; {len(renamed)} got another name"
        )
        for row in renamed[:10]:
            names = f"{row['name_before']!r} -> {row['name_after']!r}"
            print(f"  {row['image']} segment {row['segment_id']}: {names}")
        if len(renamed) > 10:
            print(f"  and {len(renamed) - 10} more in changes.csv")


def _change(
    number: int, before: Segment, after: Segment, truth: Sequence[Segment] = ()
) -> dict[str, Any]:
    change = {"segment_id": number, "iou_before_after": _iou(before.mask, after.mask)}
    if truth:
        # What the segment stands for: the true one that it, or else the repaired one, lies on.
        best = max(
            truth, key=lambda true: (_iou(true.mask, before.mask), _iou(true.mask, after.mask))
        )
        change["true_iou_before"] = _iou(best.mask, before.mask)
        change["true_iou_after"] = _iou(best.mask, after.mask)
    return change | {
        "name_before": before.category_name,
        "name_after": after.category_name,
        "score_before": round(before.score, 5),
        "score_after": round(after.score, 5),
    }


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return round(np.count_nonzero(one & other) / max(1, np.count_nonzero(one | other)), 5)


def _caption(side: str, changes: Sequence[dict[str, Any]]) -> str:
    """Before or after, with the mean agreement with the truth where that is known."""
    known = [change[f"true_iou_{side}"] for change in changes if f"true_iou_{side}" in change]
    return f"{side}, IoU with the truth {np.mean(known):.2f}" if known else side


def _drawn(image: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    # At the panel's size, so that labels stay readable.
    picture = RoseVisualizer(image, scale=_PANEL / max(image.shape[:2])).draw_segments(
        [segment.mask for segment in segments],
        [segment.category_name or "(no name)" for segment in segments],
        [segment.name_score for segment in segments],
        is_thing=[segment.is_thing for segment in segments],
    )
    return picture.get_image()


def _changed(image: np.ndarray, pairs: Sequence[tuple[Segment, Segment]]) -> np.ndarray:
    """The image in grey, with what repairs added in green and what they took away in red."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    picture = (0.5 * grey + 70).astype(np.uint8)
    for old, new in pairs:
        picture[new.mask & ~old.mask] = _ADDED
        picture[old.mask & ~new.mask] = _TAKEN
    scale = _PANEL / max(image.shape[:2])
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
