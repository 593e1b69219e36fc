"""The one table of tasks: what each kind of question asks and what answers it.

A new task is one entry here and the target builder that makes its training samples, in
`data/scene_targets.py` or, for a question about one region, in `data/region_targets.py`;
docs/adding_a_task.md shows how.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One kind of question about an image.

    Attributes:
        name: in metadata, dataset dicts, `batched_inputs` and on command lines.
        output: the key of a model output that holds the answer.
        wordings: instructions about the whole image; the first is the paper's (section 6.3, where
            it gives one) and the one used at test time, the others are ours and drawn in training.
            Empty where the words depend on a region, see `instructions.py`.
        evaluator_type: of its datasets, as detectron2 names it; "" for a task that has none of its
            own and is made from others' annotations, at random and only in training.
        has_one_answer: it asks about one region, and one mask answers it whatever its score.
        gives_stuff: it asks for regions of stuff as well as for things.
        takes_expression: its wordings have a place for a referring expression.
        takes_candidates: its instruction may list class names to choose from.
        made_from: tasks whose annotations serve it too.
    """

    name: str
    output: str
    wordings: tuple[str, ...] = ()
    evaluator_type: str = ""
    has_one_answer: bool = False
    gives_stuff: bool = False
    takes_expression: bool = False
    takes_candidates: bool = False
    made_from: tuple[str, ...] = ()

    @property
    def classes_key(self) -> str:
        """Where a dataset's metadata lists the classes of this task, index = contiguous class."""
        return "stuff_classes" if self.gives_stuff else "thing_classes"

    @property
    def metadata(self) -> dict[str, str]:
        """What the metadata of a dataset of this task says about it."""
        return {"task": self.name, "evaluator_type": self.evaluator_type}


_DENSE_TASKS = (
    Task(
        "semantic",
        output="sem_seg",
        wordings=(
            (
                "Can you segment this image? Please respond with category names and corresponding "
                "segment masks."
            ),
            "Please segment everything in this image and name each category.",
            "Divide this image into regions and tell me the category of each one.",
            "Could you label every part of this image with a mask and a category name?",
            "Please give the masks and category names of all objects and background areas.",
        ),
        evaluator_type="sem_seg",
        gives_stuff=True,
        takes_candidates=True,
        made_from=("panoptic",),
    ),
    Task(
        "instance",
        output="instances",
        wordings=(
            "Please segment all the foreground instances in this image.",
            "Can you segment the foreground instance?",
            "Please output a mask and a name for every foreground object.",
            "Segment each countable object in this image, without the background.",
            "Could you find all foreground instances and give their masks?",
        ),
        evaluator_type="coco",
        takes_candidates=True,
    ),
    Task(
        "panoptic",
        output="panoptic_seg",
        wordings=(
            (
                "Can you do panoptic segmentation of this image? Please respond with category "
                "names and corresponding segment masks."
            ),
            "Please segment every instance and every background area of this image.",
            "Give a panoptic segmentation of this image with the name of each segment.",
            "Could you separate all the objects and the background areas, each with its name?",
            "Please output masks and names for each object and each background region.",
        ),
        evaluator_type="coco_panoptic_seg",
        gives_stuff=True,
        takes_candidates=True,
        made_from=("semantic",),
    ),
)
_DATASET_TASKS = (
    *_DENSE_TASKS,
    Task(
        "referring",
        output="ref_seg",
        wordings=(
            "What is {description} in this image? Please output the segmentation mask.",
            "Can you segment {description} in this image?",
            "Please segment {description} in this image.",
            "Where is {description} in this image? Please respond with the segmentation mask.",
            "Please output the mask of {description}.",
        ),
        evaluator_type="refcoco",
        has_one_answer=True,
        takes_expression=True,
    ),
)
_ANY = tuple(task.name for task in _DATASET_TASKS)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *_DATASET_TASKS,
        Task("region", output="ref_seg", has_one_answer=True, made_from=_ANY),
        Task("refinement", output="ref_seg", has_one_answer=True, made_from=_ANY),
    )
}
CANDIDATE_TASKS = tuple(task.name for task in TASKS.values() if task.takes_candidates)


def get_task(name: str) -> Task:
    """Look a task up by its name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in TASKS:
        raise ValueError(f"Got task {name!r}; the tasks are {', '.join(TASKS)}.")
    return TASKS[name]
