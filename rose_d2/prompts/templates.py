"""What the user says, per task, and the two sentences that decode a category embedding.

The first wording of every task is the paper's own (section 6.3, where it gives one); it is
the one used at test time. The others are ours and are drawn at random during training.
"""

import random

import numpy as np

from rose_d2.prompts.special_tokens import CATEGORY_TOKEN

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "semantic": (
        (
            "Can you segment this image? Please respond with category names and corresponding "
            "segment masks."
        ),
        "Please segment everything in this image and name each category.",
        "Divide this image into regions and tell me the category of each one.",
        "Could you label every part of this image with a mask and a category name?",
        "Please give the masks and category names of all objects and background areas.",
    ),
    "instance": (
        "Please segment all the foreground instances in this image.",
        "Can you segment the foreground instance?",
        "Please output a mask and a name for every foreground object.",
        "Segment each countable object in this image, without the background.",
        "Could you find all foreground instances and give their masks?",
    ),
    "panoptic": (
        (
            "Can you do panoptic segmentation of this image? Please respond with category names "
            "and corresponding segment masks."
        ),
        "Please segment every instance and every background area of this image.",
        "Give a panoptic segmentation of this image with the name of each segment.",
        "Could you separate all the objects and the background areas, each with its name?",
        "Please output masks and names for each object and each background region.",
    ),
    "referring": (
        "What is {description} in this image? Please output the segmentation mask.",
        "Can you segment {description} in this image?",
        "Please segment {description} in this image.",
        "Where is {description} in this image? Please respond with the segmentation mask.",
        "Please output the mask of {description}.",
    ),
}

CANDIDATE_CLAUSES: tuple[str, ...] = (
    "Please choose the category names from: {candidates}.",
    "Only use these category names: {candidates}.",
    "The possible categories are: {candidates}.",
    "Answer with categories of this list: {candidates}.",
)

CANDIDATE_TASKS = ("semantic", "instance", "panoptic")

# Section 3.3. The category embedding is spliced in at CATEGORY_TOKEN; the name and a period follow
# the opening of the answer.
CATEGORY_DECODING_USER = (
    f"{CATEGORY_TOKEN} Please decode this linguistic embedding into a noun concept."
)
CATEGORY_DECODING_ASSISTANT = "Sure, it is"

RandomSource = random.Random | np.random.Generator


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
    if task not in INSTRUCTIONS:
        raise ValueError(
            f"Unknown task {task!r}; known tasks are {sorted(INSTRUCTIONS)}. "
            "Add its wordings to INSTRUCTIONS to introduce a new one."
        )
    wording = _pick(INSTRUCTIONS[task], rng)
    if task == "referring":
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
    if task not in CANDIDATE_TASKS:
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
