"""A question to the model: which task a user's options mean, and the words that ask for it."""

from collections.abc import Sequence
from typing import Any

from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.templates import CANDIDATE_TASKS, build_instruction

DEFAULT_TASK = "panoptic"


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
