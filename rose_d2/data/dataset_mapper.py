"""From a dataset dict to one item of the model's `batched_inputs`."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog

from rose_d2.data.image_io import MAX_PIXELS, ImageReadError, read_image
from rose_d2.data.scene_targets import TARGET_BUILDERS, check_candidate_mode, dataset_candidates
from rose_d2.data.targets import TargetBuilder
from rose_d2.layers.views import model_views
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.instructions import build_instruction
from rose_d2.prompts.tasks import TASKS, get_task

# Passed on from the dataset dict where present.
_PASSED_ON = (
    "file_name",
    "image_id",
    "height",
    "width",
    "task",
    "dataset_name",
    "ref_id",
    "sent_id",
    "sentence",
)


class RoseDatasetMapper:
    """Reads the image, makes its two views and, in training, hands over to a target builder.

    All randomness of a sample comes from the generator it is called with, so a training stream
    can be reproduced and resumed at any sample.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        lmm_image_size: int,
        sam_image_size: int,
        target_builders: dict[str, TargetBuilder],
        flip_prob: float = 0.0,
        candidate_mode: str = "",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """
        Args:
            is_train: False leaves out targets and takes the paper's wording of the instruction.
            lmm_image_size: side I of the language model's square view.
            sam_image_size: longest side of SAM's view.
            target_builders: one per task; empty for testing.
            flip_prob: share of mirrored training images; referring samples never are, since
                mirroring swaps "left" and "right".
            candidate_mode: what to do with the dataset's classes in testing, see
                TEST.CANDIDATES.
            max_pixels: larger images are refused, see INPUT.MAX_PIXELS.

        Raises:
            ValueError: the candidate mode is unknown.
        """
        self.is_train = is_train
        self.lmm_image_size = lmm_image_size
        self.sam_image_size = sam_image_size
        self.target_builders = target_builders
        self.flip_prob = flip_prob
        self.candidate_mode = check_candidate_mode(candidate_mode)
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        builders = {
            task: builder(**builder.settings(cfg)) for task, builder in TARGET_BUILDERS.items()
        }
        return {
            "is_train": is_train,
            "lmm_image_size": cfg.MODEL.LMM.IMAGE_SIZE,
            "sam_image_size": cfg.MODEL.MASK_HEAD.IMAGE_SIZE,
            "target_builders": builders if is_train else {},
            "flip_prob": cfg.INPUT.FLIP_PROB,
            "candidate_mode": cfg.TEST.CANDIDATES,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(
        self, dataset_dict: dict[str, Any], rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        """Map one dataset dict.

        Args:
            dataset_dict: with at least file_name, height, width, task and dataset_name; see the
                target builder of the task for the annotations. It is not modified.
            rng: the sample's own randomness in training; None draws an arbitrary one.

        Returns:
            `image` uint8 (3, I, I), `sam_image` uint8 (3, h, w), `conversation`, the passed-on
            keys and, in training, `instances`, `negative_points`, `ignore_mask`; `candidates`
            where the instruction lists some (training) or names are confined to some (testing);
            `prior_mask` for tasks about one region, and `named_box` where the instruction has one.

        Raises:
            ImageReadError: an image is damaged or not of the annotated size.
            ValueError: the task is unknown, or is one about a region and not in training.
        """
        if not self.is_train:
            return self._map_for_test(dataset_dict)
        rng = np.random.default_rng() if rng is None else rng
        task = dataset_dict["task"]
        if task not in self.target_builders:
            raise ValueError(
                f"Dataset {dataset_dict['dataset_name']!r} has task {task!r}; known tasks are "
                f"{', '.join(self.target_builders)}. Set `task` in its metadata to one of them."
            )
        # A mirrored image would make "on the left" wrong.
        flip = "sentence" not in dataset_dict and rng.random() < self.flip_prob
        mapped = self._map_image(dataset_dict, flip=flip)
        targets = self.target_builders[task].build(
            dataset_dict, MetadataCatalog.get(dataset_dict["dataset_name"]), rng, flip=flip
        )
        mapped.update(
            conversation=targets.conversation,
            instances=targets.instances,
            negative_points=targets.negative_points,
            ignore_mask=targets.ignore_mask,
        )
        if targets.candidates is not None:
            mapped["candidates"] = targets.candidates
        if targets.prior_mask is not None:
            mapped["prior_mask"] = targets.prior_mask
        if targets.named_box is not None:
            mapped["named_box"] = targets.named_box
        return mapped

    def _map_for_test(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        task = dataset_dict["task"]
        if not get_task(task).evaluator_type:
            raise ValueError(
                f"Dataset {dataset_dict['dataset_name']!r} has task {task!r}, whose samples are "
                "made at random and only for training; test on the dataset's own task."
            )
        mapped = self._map_image(dataset_dict, flip=False)
        listed, allowed = self._candidates(dataset_dict)
        mapped["conversation"] = Conversation(
            build_instruction(task, description=dataset_dict.get("sentence"), candidates=listed)
        )
        if allowed is not None:
            mapped["candidates"] = allowed
        return mapped

    def _candidates(
        self, dataset_dict: dict[str, Any]
    ) -> tuple[list[str] | None, list[str] | None]:
        """Names the instruction lists and names that may be spelled, None where any may be.

        A sample's own candidates are both, and come before the dataset's.
        """
        own = dataset_dict.get("candidates")
        if own is not None or not self.candidate_mode:
            return own, own
        if not TASKS[dataset_dict["task"]].takes_candidates:
            return None, None
        metadata = MetadataCatalog.get(dataset_dict["dataset_name"])
        names = dataset_candidates(metadata, dataset_dict["task"])
        return (
            names if self.candidate_mode in ("prompt", "both") else None,
            names if self.candidate_mode in ("decode", "both") else None,
        )

    def _map_image(self, dataset_dict: dict[str, Any], *, flip: bool) -> dict[str, Any]:
        annotated = (dataset_dict["height"], dataset_dict["width"])
        image = read_image(
            dataset_dict["file_name"], annotated_size=annotated, max_pixels=self.max_pixels
        )
        if image.shape[:2] != annotated:
            raise ImageReadError(
                f"{dataset_dict['file_name']!r} has size (height, width) {image.shape[:2]} but is "
                f"annotated as {annotated}; the annotation file belongs to other images."
            )
        image = np.ascontiguousarray(image[:, ::-1]) if flip else image
        mapped = {key: dataset_dict[key] for key in _PASSED_ON if key in dataset_dict}
        mapped["image"], mapped["sam_image"] = model_views(
            image, self.lmm_image_size, self.sam_image_size
        )
        return mapped
