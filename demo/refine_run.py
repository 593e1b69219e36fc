"""One run of `demo.py --refine`: masks in, better masks and before / after pictures out."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_config import load_config
from folder_run import FolderRun
from image_files import file_name_of
from refine_masks import read_masks
from refine_policy import choose_segments
from result_files import save_image

from rose_d2.engine.predictor import find_weights
from rose_d2.engine.provenance import config_hash, file_sha256
from rose_d2.engine.session.session_instructions import check_text
from rose_d2.structures.segment import Segment
from rose_d2.visualization import RoseVisualizer, contact_sheet

# Side of a picture, before or after, in pixels.
_PANEL = 480
_COLUMNS = (
    "image",
    "segment_id",
    "iou_before_after",
    "name_before",
    "name_after",
    "score_before",
    "score_after",
    "instruction",
)


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
        overwrite: bool = False,
        overlay: bool = True,
    ) -> None:
        """
        Args:
            images: the images of the masks.
            output: folder of the results.
            config_file: a ROSE config.
            masks: a COCO file or a folder of label PNGs.
            opts: changes to the config, KEY VALUE KEY VALUE.
            instruction: what is wrong, in words; None takes the trained words for a bad mask.
            policy: one of `refine_options.POLICIES`; None: "all" with an instruction, else
                "lowest-score".
            count: segments an image that a policy chooses.
            overwrite: redo images that have their result.
            overlay: draw pictures.

        Raises:
            ValueError: options, masks or config do not fit, or `output` holds other results.
            OSError: config or weights do not exist.
        """
        self.instruction = None if instruction is None else check_text(instruction)
        self.policy = policy or ("lowest-score" if instruction is None else "all")
        self.count = count
        self.masks = read_masks(masks)
        cfg = load_config(config_file, opts, min_score=0.0)
        info = {
            "description": "Segments refined by ROSE (rose_d2)",
            "refine": file_name_of(masks),
            "refine_sha256": file_sha256(str(masks)) if masks.is_file() else None,
            "instruction": self.instruction,
            "policy": self.policy,
            "count": None if self.policy == "all" else count,
            "config_hash": config_hash(cfg),
            "weights_sha256": file_sha256(find_weights(cfg)),
        }
        self._begin(images, output, cfg, info, overwrite=overwrite, overlay=overlay)

    def _predict(self, batch: list[tuple[Path, np.ndarray]]) -> list[dict[str, Any] | None]:
        return [self._refine(path, image) for path, image in batch]

    def _refine(self, path: Path, image: np.ndarray) -> dict[str, Any] | None:
        """All segments before and after, and which were refined; None if that failed."""
        try:
            before = self.masks.of(path, file_name_of(path), image.shape[:2])
            session = self.predictor.open(image)
            added = session.add(*before) if before else ()
            after: list[Segment] = list(added)
            chosen = choose_segments(added, self.policy, self.count)
            for position in chosen:
                answer = session.refine(added[position], self.instruction)
                after[position] = answer[0]
        except (RuntimeError, ValueError, MemoryError) as error:
            self._fail(path, error)
            return None
        return {"before": before, "after": after, "chosen": chosen}

    def _keep(self, path: Path, image: np.ndarray, output: dict[str, Any]) -> None:
        before, after, chosen = output["before"], output["after"], output["chosen"]
        name = self._result_name(path)
        if self.overlay:
            panels = [_drawn(image, [side[i] for i in chosen]) for side in (before, after)]
            picture = contact_sheet(panels, ["before", "after"], columns=2, cell=_PANEL)
            save_image(picture, self.output / self.pictures / f"{name}.jpg")
        changes = [_change(i + 1, before[i], after[i]) for i in sorted(chosen)]
        self._add(path, image, after, name, refinements=changes)

    def _report(self, interrupted: bool) -> None:
        rows = [
            {"image": entry["file_name"], "instruction": self.instruction or "", **change}
            for entry in self.predictions.images()
            for change in entry["refinements"]
        ]
        if self.predictions.images():
            write_table(self.output / "changes.csv", rows)
        super()._report(interrupted)
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


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the changes, one refined segment a line, whole or not at all."""
    partial = path.with_name(f".partial-{path.name}")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def _change(number: int, before: Segment, after: Segment) -> dict[str, Any]:
    union = np.count_nonzero(before.mask | after.mask)
    return {
        "segment_id": number,
        "iou_before_after": round(np.count_nonzero(before.mask & after.mask) / union, 5),
        "name_before": before.category_name,
        "name_after": after.category_name,
        "score_before": round(before.score, 5),
        "score_after": round(after.score, 5),
    }


def _drawn(image: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    # At the panel's size, so that labels stay readable.
    picture = RoseVisualizer(image, scale=_PANEL / max(image.shape[:2])).draw_segments(
        [segment.mask for segment in segments],
        [segment.category_name or "(no name)" for segment in segments],
        [segment.score for segment in segments],
        is_thing=[segment.is_thing for segment in segments],
    )
    return picture.get_image()
