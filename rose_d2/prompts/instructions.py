"""What the user says and the model answers: instructions of every task, counting sentences, the
two sentences that decode a category embedding, and second turns about a region.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rose_d2.prompts.conversation import CATEGORY_TOKEN
from rose_d2.prompts.tasks import CANDIDATE_TASKS, TASKS, get_task
from rose_d2.prompts.tokenizer import REGION_TOKEN, SEG_TOKEN
from rose_d2.structures.segments import BOX_SCALE, NormalisedBox, RefinementRequest, check_box

CANDIDATE_CLAUSES: tuple[str, ...] = (
    "Please choose the category names from: {candidates}.",
    "Only use these category names: {candidates}.",
    "The possible categories are: {candidates}.",
    "Answer with categories of this list: {candidates}.",
)
# Section 3.3. The category embedding is spliced in at CATEGORY_TOKEN; the name and a period follow
# the opening of the answer.
CATEGORY_DECODING_USER = (
    f"{CATEGORY_TOKEN} Please decode this linguistic embedding into a noun concept."
)
CATEGORY_DECODING_ASSISTANT = "Sure, it is"
RandomSource = random.Random | np.random.Generator
NOTHING_FOUND = "There is nothing to segment in this image."
REFINEMENT_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "mask": (
        (
            "This segmentation mask is incomplete, please ensure the entire object is captured. "
            "The target is in the box {box}."
        ),
        "Please refine the given mask of the target in the box {box}.",
        "The given mask in the box {box} has holes or extra parts, please correct it.",
        "Could you improve the boundary of this mask? The target is in the box {box}.",
        "This mask does not cover the object in the box {box} as it should, please correct it.",
        "Please remove extra parts of the mask in the box {box} and add what is missing.",
        "The previous mask in the box {box} is wrong, please segment the whole object.",
        "Can you improve this segmentation result? It is in the box {box}.",
        "Please ensure this mask in the box {box} covers the complete target and nothing extra.",
        "The shape of the mask in the box {box} is not correct, please output the correct one.",
    ),
    "category": (
        (
            "The category of this segmentation result is wrongly predicted as {category}, please "
            "correctify this. The target is in the box {box}."
        ),
        "This is not {category}, please correct the name and mask of the target in the box {box}.",
        (
            "The target in the box {box} is wrongly named {category}, please give the correct "
            "category and mask."
        ),
        "The name {category} is wrong for the mask in the box {box}, please correct both.",
        (
            "What is the object in the box {box}? It is not {category}, please name it and refine "
            "its mask."
        ),
        (
            "Could you correct the category of the given mask in the box {box}? It should not be "
            "{category}."
        ),
        (
            "The previous category {category} of the region in the box {box} is not correct, "
            "please segment and name it."
        ),
        "Please identify the object of this mask in the box {box}, {category} is not correct.",
        (
            "Can you tell me the correct name of the given region in the box {box}? The previous "
            "result is {category}, which is wrong."
        ),
        (
            "Please segment the target in the box {box} and name it, it has been wrongly predicted "
            "as {category}."
        ),
    ),
    "missed": (
        (
            "Please segment target region with mask and corresponding category. "
            "The target is in the box {box}."
        ),
        "There is a missed object in the box {box}, please segment and name it.",
        "The target in the box {box} is missing in the result, please add its mask and name.",
        "Please find the missed target in the box {box} and give its mask and category.",
        "Could you segment the missing region in the box {box} and tell me its category?",
        "You have missed the object in the box {box}, please segment it and name its category.",
        "What have you missed in the box {box}? Please respond with its mask and category name.",
        "Please add the missing segmentation mask in the box {box} with its category.",
        "Can you detect the target in the box {box}? It is not in the previous result.",
        "Please locate and segment what has been missed in the box {box}, with its name.",
    ),
}
# The region is marked by an uncorrupted mask in the fourth channel, or by its box.
REGION_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "mask": (
        "Please segment the region of the given mask and name its category.",
        "What is the object of this mask? Please respond with its category and segmentation mask.",
        "Can you name the region that the given mask covers? Please output its mask.",
        "Please identify the region of this mask and give its name and mask.",
        "Which category is the region of the given mask? Please segment and name it.",
    ),
    "box": (
        "Please segment the region in the box {box} and name its category.",
        (
            "What is the object in the box {box}? Please respond with its category and "
            "segmentation mask."
        ),
        "Can you name the target of the box {box}? Please output its mask.",
        "Please identify what is in the box {box} and give its name and mask.",
        "Which category is the region in the box {box}? Please segment and name it.",
    ),
}


def build_instruction(
    task: str,
    *,
    description: str | None = None,
    candidates: list[str] | None = None,
    rng: RandomSource | None = None,
) -> str:
    """Build the user's sentence for one image.

    Args:
        task: "semantic", "instance", "panoptic" or "referring".
        description: the referring expression; required for "referring", else not allowed.
        candidates: class names the answer must be chosen from; only for the dense tasks.
        rng: draws one of several wordings; None takes the paper's wording.

    Returns:
        The instruction, without image token and without chat template.

    Raises:
        ValueError: unknown task, or a description or candidates the task cannot use or lacks.
    """
    kind = get_task(task)
    if not kind.wordings:
        whole = ", ".join(name for name, other in TASKS.items() if other.wordings)
        raise ValueError(
            f"The words of the task {task!r} depend on a region; tasks about a whole image are "
            f"{whole}."
        )
    wording = _pick(kind.wordings, rng)
    if kind.takes_expression:
        wording = wording.format(description=_checked_description(description))
    elif description is not None:
        raise ValueError(
            f"Task {task!r} takes no description, got {description!r}; "
            "use task 'referring' to segment what an expression describes."
        )
    if candidates is None:
        return wording
    return f"{wording} {_candidate_clause(task, candidates, rng)}"


def _checked_description(description: str | None) -> str:
    if description is None or not description.strip():
        raise ValueError(
            f"Task 'referring' needs a non-empty description, got {description!r}; "
            "pass what to segment, for example 'the dog on the left'."
        )
    return description.strip()


def _candidate_clause(task: str, candidates: list[str], rng: RandomSource | None) -> str:
    if not TASKS[task].takes_candidates:
        raise ValueError(
            f"Task {task!r} takes no class candidates; only {list(CANDIDATE_TASKS)} do. "
            "Leave candidates out."
        )
    if not candidates or any(not name.strip() for name in candidates):
        raise ValueError(
            f"Candidates must be one or more non-empty names, got {candidates!r}; "
            "pass None to let the model name things freely."
        )
    return _pick(CANDIDATE_CLAUSES, rng).format(candidates=", ".join(candidates))


def _pick(wordings: tuple[str, ...], rng: RandomSource | None) -> str:
    if rng is None:
        return wordings[0]
    if isinstance(rng, random.Random):
        return rng.choice(wordings)
    return wordings[int(rng.integers(len(wordings)))]


def counting_response(names: list[str], max_names: int | None = None) -> str:
    """Say how many objects of each name there are, as the paper does.

    Names stay singular and keep the order in which they first appear (the target builders pass
    them in the order of the dataset's classes). With more than `max_names` different names only
    the most frequent are said, ties going to the earlier name.

    Args:
        names: one name per target, repeated as often as it occurs.
        max_names: most different names to list; None lists all.

    Returns:
        For example "There are 5 person, 2 bicycle in this image."; `NOTHING_FOUND` for no names.

    Raises:
        ValueError: `max_names` below 1.
    """
    if max_names is not None and max_names < 1:
        raise ValueError(
            f"max_names must be at least 1, got {max_names}; "
            "set MODEL.ROSE.MAX_COUNTED_NAMES to a positive number."
        )
    if not names:
        return NOTHING_FOUND
    counts = Counter(names)
    said = {name for name, _ in counts.most_common(max_names)}
    listed = ", ".join(f"{count} {name}" for name, count in counts.items() if name in said)
    return f"There are {listed} in this image."


def seg_response(names: Sequence[str], per_target: int = 1) -> str:
    """List targets for a stack of <SEG> (paper section 4.4, "along <SEG>"; the wording is ours).

    Args:
        names: one name a target, "" where the annotation has none.
        per_target: <SEG> tokens of each.

    Returns:
        For example "dog <SEG>, red car <SEG>."; `NOTHING_FOUND` for no names.
    """
    if not names:
        return NOTHING_FOUND
    return ", ".join(f"{name} {SEG_TOKEN * per_target}".strip() for name in names) + "."


def region_response(names: Sequence[str]) -> str:
    """List the names of patches (paper section 4.4, "along <REGION>"; the wording is ours).

    Args:
        names: one name a patch, "" where the annotation has none.

    Returns:
        For example "<REGION> dog, <REGION> red car."; `NOTHING_FOUND` for no names.
    """
    if not names:
        return NOTHING_FOUND
    return ", ".join(f"{REGION_TOKEN} {name}".strip() for name in names) + "."


def add_up_counts(response: str) -> str:
    """Say each name of a counting response once, as `counting_response` does.

    A model that lists objects one by one writes "1 cow, 1 cow", which here becomes "2 cow".

    Args:
        response: generated, of any form.

    Returns:
        The same with equal names added up; unchanged if it is no counting response.
    """
    sentence = re.fullmatch(r"There are (.+) in this image\.", response)
    listed = sentence[1].split(", ") if sentence else []
    items = [re.fullmatch(r"(\d+) (.+)", entry) for entry in listed]
    counts: Counter[str] = Counter()
    for item in items:
        if item is None:
            return response
        counts[item[2]] += int(item[1])
    if not counts:
        return response
    added = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"There are {added} in this image."


def build_refinement_instruction(
    request: RefinementRequest, *, rng: RandomSource | None = None
) -> str:
    """Build the user's sentence that asks for one repair.

    Args:
        request: what is wrong and where.
        rng: draws one of ten wordings, and one of the referring request's; None takes the paper's.

    Returns:
        The instruction, without image token and without chat template.
    """
    wording = _pick(REFINEMENT_INSTRUCTIONS[request.situation], rng)
    repair = wording.format(box=_written(request.box), category=request.wrong_category)
    if request.expression is None:
        return repair
    asked = build_instruction("referring", description=request.expression, rng=rng)
    return f"{asked} {repair}"


def build_region_instruction(
    box: NormalisedBox | None = None, *, rng: RandomSource | None = None
) -> str:
    """Build the user's sentence that asks for the mask and the name of a marked region.

    Args:
        box: of the region, see `normalised_box`; None if the region is given as a mask in the
            fourth channel.
        rng: draws one of several wordings; None takes the first.

    Returns:
        The instruction, without image token and without chat template.

    Raises:
        ValueError: `box` is not four integers 0-999 in order.
    """
    if box is None:
        return _pick(REGION_INSTRUCTIONS["mask"], rng)
    check_box(box)
    return _pick(REGION_INSTRUCTIONS["box"], rng).format(box=_written(box))


def box_in_words(mask_or_box: np.ndarray | Sequence[float], size: int | tuple[int, int]) -> str:
    """Write a region's box as the instructions do, for example "[12, 30, 500, 999]".

    Args, errors: as `normalised_box`.
    """
    return _written(normalised_box(mask_or_box, size))


def normalised_box(
    mask_or_box: np.ndarray | Sequence[float], size: int | tuple[int, int]
) -> NormalisedBox:
    """Bring a region's box to integers 0-999: edges over width and height, rounded half up.

    Args:
        mask_or_box: a bool mask (H, W), whose tight box is taken, or four numbers (x1, y1, x2, y2)
            in pixels; right and bottom edges are exclusive, so a full image gives 0, 0, 999, 999.
            A box that reaches over the border of the image is cut there.
        size: (height, width) of the image in pixels, or the side of a square view.

    Returns:
        (x1, y1, x2, y2).

    Raises:
        ValueError: an empty mask, a mask of another size, or a box without area in the image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    values = np.asarray(mask_or_box)
    if values.ndim == 2:
        x1, y1, x2, y2 = _tight_box(values, height, width)
    elif values.shape == (4,):
        x1, y1, x2, y2 = values.clip(0, (width, height, width, height)).tolist()
    else:
        raise ValueError(
            "Pass a mask (height, width) or four numbers (x1, y1, x2, y2) in pixels, got an array "
            f"of shape {values.shape}."
        )
    if not (x1 < x2 and y1 < y2):
        raise ValueError(
            f"The box {mask_or_box!r} has no area inside the image of (height, width) "
            f"{(height, width)}; give x1 < x2 and y1 < y2 in its pixels."
        )
    x1, x2 = (int(x / width * BOX_SCALE + 0.5) for x in (x1, x2))
    y1, y2 = (int(y / height * BOX_SCALE + 0.5) for y in (y1, y2))
    return x1, y1, x2, y2


def _tight_box(mask: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    if mask.shape != (height, width):
        raise ValueError(
            f"Got a mask of (height, width) {mask.shape} for an image of {(height, width)}; bring "
            "the mask to the size of the image first."
        )
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        raise ValueError(
            "Got a mask without any pixel, which has no box; for a region that has no mask yet, "
            "give its box in pixels instead."
        )
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _written(box: NormalisedBox) -> str:
    return "[{}, {}, {}, {}]".format(*box)
