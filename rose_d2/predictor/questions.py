"""Questions about an image as model inputs, and model outputs as plain lists of named segments."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances

from rose_d2.layers.views import model_views
from rose_d2.modeling.patch_analyzer import STUFF_ROLE
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.instructions import build_instruction
from rose_d2.prompts.tasks import CANDIDATE_TASKS, get_task
from rose_d2.structures.segments import Segment, found_instances

DEFAULT_TASK = "panoptic"


def image_input(cfg: CfgNode, image: np.ndarray) -> dict[str, Any]:
    """The part of an item of `batched_inputs` that does not depend on the question.

    Args:
        cfg: the model's config.
        image: uint8 (H, W, 3), RGB.

    Returns:
        `image` uint8 (3, I, I), `sam_image` uint8 (3, h, w), `height` and `width`.

    Raises:
        ValueError: the image is not uint8 (H, W, 3).
    """
    fits = isinstance(image, np.ndarray) and image.dtype == np.uint8
    if not (fits and image.ndim == 3 and image.shape[2] == 3 and image.size > 0):
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
        raise ValueError(
            f"An image must be a uint8 RGB array of shape (height, width, 3), got {got}; "
            "rose_d2.data.image_io.read_image reads any file so."
        )
    lmm_view, sam_view = model_views(
        image, cfg.MODEL.LMM.IMAGE_SIZE, cfg.MODEL.MASK_HEAD.IMAGE_SIZE
    )
    return {
        "image": lmm_view,
        "sam_image": sam_view,
        "height": image.shape[0],
        "width": image.shape[1],
    }


def segments_from_output(
    output: dict[str, Any], task: str, min_score: float = 0.0
) -> list[Segment]:
    """List what a model found in one image, best first.

    Semantic segments are the instances of one name merged, with every pixel given to the best
    scored name; panoptic segments do not overlap either.

    Args:
        output: one item of the model's list of outputs.
        task: the task it was asked for.
        min_score: segments with a lower objectness are left out. A task with one answer ignores
            it: that is the best mask, however sure the model is.

    Returns:
        Segments with at least one pixel.

    Raises:
        ValueError: if the task is unknown.
    """
    kind = get_task(task)
    if kind.output == "panoptic_seg":
        segments = _panoptic_segments(output)
    else:
        segments = _instance_segments(found_instances(output))
    if not kind.has_one_answer:
        segments = [segment for segment in segments if segment.score >= min_score]
    return merge_by_name(segments) if kind.output == "sem_seg" else segments


def merge_by_name(segments: list[Segment]) -> list[Segment]:
    """One segment a name, without overlap: a pixel belongs to the best scored segment on it.

    Args:
        segments: any number of segments of one image.

    Returns:
        Segments by descending score; names that keep no pixel are dropped. Score, name score and
        kind are those of the best segment of the name.
    """
    best_first = sorted(segments, key=lambda segment: -segment.score)
    best: dict[str, Segment] = {}
    for segment in best_first:
        best.setdefault(segment.category_name, segment)
    if not best:
        return []
    names = list(best)
    owner = np.full(best_first[0].mask.shape, -1)
    for segment in reversed(best_first):
        owner[segment.mask] = names.index(segment.category_name)
    return [
        Segment(owner == i, name, best[name].score, best[name].name_score, best[name].is_thing)
        for i, name in enumerate(names)
        if (owner == i).any()
    ]


def _instance_segments(instances: Instances) -> list[Segment]:
    fields = zip(
        (mask.cpu().numpy() for mask in instances.pred_masks),
        instances.pred_category_names,
        instances.scores.tolist(),
        instances.name_scores.tolist(),
        instances.pred_roles.tolist(),
        strict=True,
    )
    return [
        Segment(mask, name, score, name_score, role != STUFF_ROLE)
        for mask, name, score, name_score, role in fields
        if mask.any()
    ]


def _panoptic_segments(output: dict[str, Any]) -> list[Segment]:
    panoptic_seg, segments_info = output["panoptic_seg"]
    ids = panoptic_seg.cpu().numpy()
    segments = []
    for info in segments_info:
        mask = ids == info["id"]
        if mask.any():
            scores = info["score"], info["name_score"]
            segments.append(Segment(mask, info["category_name"], *scores, info["isthing"]))
    return segments


def resolve_task(
    task: str | None, refer: str | None = None, candidates: Sequence[str] | None = None
) -> str:
    """The task that a user's options mean.

    Args:
        task: "semantic", "instance", "panoptic", or None.
        refer: a referring expression, or None.
        candidates: class names, or None.

    Returns:
        "referring" where there is an expression, else the task, by default "panoptic".

    Raises:
        ValueError: an option is empty or unknown, or two contradict each other.
    """
    if candidates is not None and (not candidates or not all(n.strip() for n in candidates)):
        raise ValueError(
            f"The class candidates {list(candidates)} must be one or more names, none of them "
            "empty; leave them out to let the model name things freely."
        )
    if refer is not None:
        if not refer.strip():
            raise ValueError(
                "The referring expression is empty; say what to segment, for example "
                "'the dog on the left'."
            )
        if task not in (None, "referring"):
            raise ValueError(
                f"A referring expression asks for one object, task {task!r} for all of them; "
                "give one of the two."
            )
        if candidates is not None:
            raise ValueError(
                "A referring expression says what to look for, so it takes no class candidates; "
                "give one of the two."
            )
        return "referring"
    if task not in (None, *CANDIDATE_TASKS):
        raise ValueError(
            f"Got task {task!r} without a referring expression; choose one of "
            f"{', '.join(CANDIDATE_TASKS)}, or give an expression."
        )
    return task or DEFAULT_TASK


def question_input(
    task: str, refer: str | None = None, candidates: Sequence[str] | None = None
) -> dict[str, Any]:
    """The part of an item of `batched_inputs` that does not depend on the image.

    Args:
        task: one of the tasks of `build_instruction`.
        refer: the expression, for the task "referring".
        candidates: class names to choose from.

    Returns:
        `task`, `conversation` and, if given, `candidates`.
    """
    names = None if candidates is None else list(candidates)
    instruction = build_instruction(task, description=refer, candidates=names)
    question = {"task": task, "conversation": Conversation(instruction)}
    return question if names is None else question | {"candidates": names}
