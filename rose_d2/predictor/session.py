"""RoseSession: a conversation about one image, in which results are repaired turn by turn."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from rose_d2.predictor.questions import (
    image_input,
    question_input,
    resolve_task,
    segments_from_output,
)
from rose_d2.predictor.session_instructions import check_text, refinement_request, refinement_words
from rose_d2.predictor.session_state import (
    Answer,
    SessionSegment,
    SessionState,
    Turn,
    write_session,
)
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.instructions import build_region_instruction, normalised_box
from rose_d2.refinement.regions import better_of_both, keeps_better, mask_in_view
from rose_d2.structures.patches import ImageFeatures
from rose_d2.structures.segments import NormalisedBox, RefinementRequest, Segment

# Marked regions whose features are kept; at 7B one costs 16 MB in bfloat16.
_KEPT_REGIONS = 8


class RoseSession:
    """One image, what was found in it so far, and the dialogue about it.

    Made by `RosePredictor.open`. Every question returns an `Answer`: the segments it gave and the
    dialogue so far. The image is encoded once, for the language model once more for every other
    mask that is to be repaired. A question that fails changes nothing. Boxes are (x1, y1, x2, y2)
    in pixels of the image, right and bottom exclusive; masks are bool (H, W).

    Example:
        >>> session = RosePredictor(cfg).open(image)
        >>> answer = session.segment()  # everything; answer is a sequence of segments
        >>> dog = answer[0]
        >>> dog = session.refine(dog, "This mask is incomplete, the tail is missing.")[0]
        >>> dog = session.refine(dog, "This is not a cat, look again.")[0]  # corrects the name
        >>> car = session.refer("the blue car on the left")[0]
        >>> session.missed((40, 10, 90, 60))  # something was not found in this box
        >>> session.name((40, 10, 90, 60))  # what is this?
        >>> session.undo()  # takes the last question back
        >>> for turn in session.dialogue:
        ...     print(turn.who, turn.text, turn.segment_ids)
        >>> session.save("talk")
        >>> session = RosePredictor(cfg).reopen("talk")
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: CfgNode,
        image: np.ndarray,
        state: SessionState | None = None,
    ) -> None:
        """
        Args:
            model: answers the questions; in evaluation mode.
            cfg: its config.
            image: uint8 (H, W, 3), RGB.
            state: of a saved session; None begins a new one.

        Raises:
            ValueError: the image is not uint8 (H, W, 3).
        """
        self._cfg = cfg
        self._model = SessionModel(
            model, image_input(cfg, image), within_box=cfg.TEST.REFINEMENT.WITHIN_BOX
        )
        self._keep_better = keeps_better(cfg)
        self._state = SessionState(uuid.uuid4().hex) if state is None else state
        self.image = image.copy()
        self.image.flags.writeable = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def segments(self) -> tuple[SessionSegment, ...]:
        """What stands now: found or added, and not refined, replaced or undone since."""
        return self._state.segments

    @property
    def dialogue(self) -> tuple[Turn, ...]:
        """All turns, oldest first."""
        return self._state.turns

    def segment(
        self,
        task: str | None = None,
        candidates: Sequence[str] | None = None,
        min_score: float = 0.5,
    ) -> Answer:
        """Segment the whole image; the segments take the place of all there are.

        Args:
            task: "semantic", "instance" or "panoptic" (the default).
            candidates: class names to choose from; None lets the model name things freely.
            min_score: segments of lower objectness are left out.

        Raises:
            ValueError: an unknown task, or candidates without a name.
        """
        question = question_input(resolve_task(task, None, candidates), None, candidates)
        output = self._model.ask(question)
        found = segments_from_output(output, question["task"], min_score)
        words = question["conversation"].instruction
        return self._state.answer(
            Turn("user", words, sent=words), found, output.get("text"), replaced=self.segments
        )

    def refer(self, expression: str) -> Answer:
        """Find the one object an expression describes, for example "the blue car on the left".

        Raises:
            ValueError: the expression is empty.
        """
        expression = check_text(expression)
        question = question_input("referring", expression)
        output = self._model.ask(question)
        turn = Turn("user", expression, sent=question["conversation"].instruction)
        found = segments_from_output(output, "referring")
        return self._state.answer(turn, found, output.get("text"), expression=expression)

    def refine(
        self,
        segment: SessionSegment | int,
        text: str | None = None,
        *,
        situation: str | None = None,
    ) -> Answer:
        """Repair a segment; the repaired one takes its place.

        The words decide what is repaired (`session_instructions.situation_of`): the mask, then
        the name stays as it is, or mask and name. If the model draws nothing, the segment stays.

        Args:
            segment: one of `segments`, or its id.
            text: what is wrong, in your words; None asks for a better mask in the trained words.
            situation: "mask" or "category" (the name is wrong) overrides what the text says.

        Raises:
            ValueError: the segment is not one of `segments`, the text is empty, or the situation
                does not exist or needs a name to correct.
        """
        old = self._state.current(segment)
        text = None if text is None else check_text(text)
        prior = self._model.view(old.mask)
        # In the view, as in training.
        box = normalised_box(prior.numpy(), prior.shape[0])
        request = refinement_request(text, situation, box, old.category_name, old.expression)
        words = refinement_words(text, request)
        # What was asked for with an expression may lie elsewhere.
        within = box if request.expression is None else None
        full = torch.from_numpy(old.mask.copy())
        output = self._model.ask_about_region(
            "refinement", words, within, prior, named=box, full_prior=full
        )
        if self._keep_better:
            output = better_of_both(output, full)
        found = segments_from_output(output, "refinement")
        if request.situation == "mask" and old.category_name:
            names = {"category_name": old.category_name, "name_score": old.name_score}
            found = [dataclasses.replace(new, **names, is_thing=old.is_thing) for new in found]
        turn = Turn("user", text or words, (old.id,), sent=words)
        return self._state.answer(turn, found, output.get("text"), replaced=(old,))

    def missed(self, box: Sequence[float], text: str | None = None) -> Answer:
        """Find what was overlooked in a box.

        Args:
            box: (x1, y1, x2, y2) in pixels; what reaches over the border is cut off.
            text: more about it, in your words.

        Raises:
            ValueError: the box has no area in the image, or the text is empty.
        """
        request = RefinementRequest("missed", normalised_box(as_box(box, self.size), self.size))
        text = None if text is None else check_text(text)
        words = refinement_words(text, request)
        output = self._model.ask_about_region("refinement", words, request.box, named=request.box)
        turn = Turn("user", text or words, sent=words)
        return self._state.answer(
            turn, segments_from_output(output, "refinement"), output.get("text")
        )

    def name(self, region: SessionSegment | np.ndarray | Sequence[float]) -> Answer:
        """Ask what something is.

        Args:
            region: one of `segments`, which the renamed one replaces; or a mask, which becomes a
                segment with this name; or a box, then the model draws the mask.

        Raises:
            ValueError: the mask is empty or of another size, the box has no area in the image, or
                the segment is not one of `segments`.
        """
        old = self._state.current(region) if isinstance(region, Segment) else None
        mask = old.mask if old is not None else as_mask(region, self.size)
        if mask is None:
            prior, box = None, normalised_box(as_box(region, self.size), self.size)
        else:
            prior = self._model.view(mask)
            box = normalised_box(prior.numpy(), prior.shape[0])
        named = box if mask is None else None
        words = build_region_instruction(named)
        output = self._model.ask_about_region("region", words, box, prior, named=named)
        found = segments_from_output(output, "region")
        if mask is not None:
            found = [dataclasses.replace(new, mask=mask) for new in found]
        spoken_of, replaced = ((), ()) if old is None else ((old.id,), (old,))
        turn = Turn("user", words, spoken_of, sent=words)
        return self._state.answer(turn, found, output.get("text"), replaced=replaced)

    def add(self, *segments: Segment, replacing: SessionSegment | int | None = None) -> Answer:
        """Bring in masks from elsewhere, for example another system's, to talk about them.

        Args:
            segments: masks with their names ("" for none) and scores.
            replacing: one of `segments`, or its id, whose place they take.

        Raises:
            ValueError: there is none, a mask is empty or of another size than the image, or the
                one to replace is not one of `segments`.
        """
        if not segments:
            raise ValueError("Nothing to add; give at least one Segment(mask, name, score).")
        old = None if replacing is None else self._state.current(replacing)
        return self._state.add([as_segment(segment, self.size) for segment in segments], old)

    def undo(self) -> Answer:
        """Take back the last question, or the last `add`.

        Returns:
            All segments that stand now, and the dialogue without the last exchange.

        Raises:
            ValueError: there is nothing to take back.
        """
        return self._state.undo()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `image.png` and `session.json`, which `RosePredictor.reopen` reads.

        Raises:
            ValueError: the folder holds another session.
        """
        write_session(folder, self.image, self._state, self._cfg)


class SessionFeatures:
    """Runs a model's image encoders only on what they have not seen yet."""

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: a ROSE.
        """
        self._model = model
        self._by_region: OrderedDict[bytes, ImageFeatures] = OrderedDict()

    def of(self, item: dict[str, Any]) -> ImageFeatures:
        """Features of the session's image with the item's region marked.

        Args:
            item: one of `batched_inputs`, always of the same image.
        """
        key = np.packbits(self._model.refinement_prompt.region(item).numpy() > 0).tobytes()
        if key not in self._by_region:
            known = next(iter(self._by_region.values()), None)
            with torch.no_grad():
                self._by_region[key] = self._model.encode(item, known)
        self._by_region.move_to_end(key)
        while len(self._by_region) > _KEPT_REGIONS:
            self._by_region.popitem(last=False)
        return self._by_region[key]


class SessionModel:
    """Answers questions about one image."""

    def __init__(self, model: nn.Module, views: dict[str, Any], *, within_box: bool) -> None:
        """
        Args:
            model: a ROSE in evaluation mode.
            views: of the image, see `image_input`.
            within_box: TEST.REFINEMENT.WITHIN_BOX.
        """
        self._model = model
        self._views = views
        self._features = SessionFeatures(model)
        self._within_box = within_box

    def view(self, mask: np.ndarray) -> Tensor:
        """A mask (H, W) in the language model's view, bool (I, I)."""
        # A copy, since a mask that stands in the session cannot be written.
        return mask_in_view(torch.from_numpy(mask.copy()), self._views["image"].shape[-1])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The model's output for the image.

        Args:
            question: what an item of `batched_inputs` has besides the views.
        """
        item = self._views | question
        item["features"] = self._features.of(item)
        with torch.no_grad():
            (output,) = self._model([item])
        return output

    def ask_about_region(
        self,
        task: str,
        words: str,
        box: NormalisedBox | None,
        prior: Tensor | None = None,
        *,
        named: NormalisedBox | None = None,
        full_prior: Tensor | None = None,
    ) -> dict[str, Any]:
        """The model's output for a question about one region.

        Args:
            task: "refinement" or "region".
            words: the instruction.
            box: where the answer lies; None where it may lie anywhere.
            prior: bool (I, I), the mask to be repaired or named.
            named: the box in the instruction.
            full_prior: bool (H, W), the mask to be repaired at the size of the image.
        """
        question: dict[str, Any] = {"task": task, "conversation": Conversation(words)}
        if named is not None:
            question["named_box"] = named
        if full_prior is not None:
            question["full_prior"] = full_prior
        if box is not None and self._within_box:
            question["answer_box"] = box
        if prior is not None:
            question["prior_mask"] = prior[None].float()
        return self.ask(question)


def as_mask(region: Any, size: tuple[int, int]) -> np.ndarray | None:
    """A mask, if a region is one.

    Args:
        region: a mask (H, W): bool, or numbers that are 0 outside; or a box.
        size: (height, width) of the image.

    Returns:
        bool (H, W), or None for anything that is no two-dimensional array.

    Raises:
        ValueError: the mask is empty or of another size.
    """
    values = region.cpu().numpy() if isinstance(region, torch.Tensor) else region
    if not isinstance(values, np.ndarray) or values.ndim != 2:
        return None
    if values.shape != size:
        raise ValueError(
            f"Got a mask of (height, width) {values.shape} for an image of {size}; bring the mask "
            "to the size of the image, or take a segment of this image."
        )
    mask = values != 0
    if not mask.any():
        raise ValueError(
            "The mask is empty; mark at least one pixel, or give the box (x1, y1, x2, y2) of "
            "something that was not found to missed()."
        )
    return mask


def as_box(region: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box, cut at the border of the image.

    Args:
        region: four numbers (x1, y1, x2, y2) in pixels.
        size: (height, width) of the image.

    Raises:
        ValueError: not four finite numbers, or without area inside the image.
    """
    height, width = size
    try:
        values = np.asarray(region, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(
            f"A box is four numbers (x1, y1, x2, y2) in pixels of the image, got {_shown(region)}."
        )
    x1, x2 = values[[0, 2]].clip(0, width).tolist()
    y1, y2 = values[[1, 3]].clip(0, height).tolist()
    if not (x1 < x2 and y1 < y2):
        raise ValueError(
            f"The box {values.tolist()} has no area inside the image, which is {width} pixels wide "
            f"and {height} high; give x1 < x2 and y1 < y2 inside it."
        )
    return x1, y1, x2, y2


def as_segment(segment: Any, size: tuple[int, int]) -> Segment:
    """A segment from elsewhere whose mask fits the image.

    Raises:
        ValueError: it is no `Segment`, or its mask is none, empty or of another size.
    """
    mask = as_mask(segment.mask, size) if isinstance(segment, Segment) else None
    if mask is None:
        raise ValueError(
            f"Got {_shown(segment)}; bring masks in as Segment(mask, name, score) with a mask "
            "bool (height, width)."
        )
    return Segment(mask, segment.category_name, segment.score, segment.name_score, segment.is_thing)


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value)[:80] if shape is None else f"an array of shape {tuple(shape)}"
