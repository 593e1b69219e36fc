"""The position in the mix of training data as part of the training state."""

import logging
from typing import Any

from detectron2.engine import HookBase

logger = logging.getLogger(__name__)


class DataPositionHook(HookBase):
    """Counts the images all processes have trained on, and says where a resumed run goes on.

    The stream of images does not depend on the number of processes. So as long as the images of
    an iteration stay as many, none comes twice and none is left out, on any number of processes
    and however they are divided into micro-batches. If their number changes, the run goes on at
    the iteration that starts nearest before the first image not seen.
    """

    def __init__(self, images_per_iteration: int) -> None:
        """
        Args:
            images_per_iteration: SOLVER.IMS_PER_BATCH times SOLVER.ACCUMULATION_STEPS.
        """
        self._per_iteration = images_per_iteration
        self._seen: int | None = None

    def start_of_data(self, start_iter: int) -> int:
        """Return the iteration, counted in images of this run, whose images come first.

        Args:
            start_iter: first iteration of the training that starts now.
        """
        if self._seen is None:  # a new run, or one saved without this number
            self._seen = start_iter * self._per_iteration
        data_iter, repeated = divmod(self._seen, self._per_iteration)
        if data_iter != start_iter:
            logger.warning(
                "The images of an iteration are not as many as before (now %d): after %d images "
                "the data go on as if %d iterations had been done; %d images come again.",
                self._per_iteration,
                self._seen,
                data_iter,
                repeated,
            )
            self._seen -= repeated
        return data_iter

    def after_step(self) -> None:
        assert self._seen is not None, "start_of_data has not been called"
        self._seen += self._per_iteration

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = state_dict["images"]
