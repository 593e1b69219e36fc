"""RoseSession: a conversation about one image, in which results are repaired turn by turn."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rose_d2.engine.questions import question_input, resolve_task
from rose_d2.engine.segments import segments_from_output
from rose_d2.engine.session.session_file import write_session
from rose_d2.engine.session.session_instructions import (
    check_text,
    refinement_request,
    refinement_words,
)
from rose_d2.engine.session.session_model import SessionModel
from rose_d2.engine.session.session_records import Answer, SessionSegment, Turn
from rose_d2.engine.session.session_regions import as_box, as_mask, as_segment
from rose_d2.engine.session.session_state import SessionState
from rose_d2.prompts.refinement_templates import build_region_instruction, normalised_box
from rose_d2.structures.refinement_request import RefinementRequest
from rose_d2.structures.segment import Segment

if TYPE_CHECKING:
    from rose_d2.engine.predictor import RosePredictor


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
        self, predictor: RosePredictor, image: np.ndarray, state: SessionState | None = None
    ) -> None:
        """
        Args:
            predictor: answers the questions.
            image: uint8 (H, W, 3), RGB.
            state: of a saved session; None begins a new one.

        Raises:
            ValueError: the image is not uint8 (H, W, 3).
        """
        self._predictor = predictor
        self._model = SessionModel(
            predictor.model,
            predictor.image_input(image),
            within_box=predictor.cfg.TEST.REFINEMENT.WITHIN_BOX,
        )
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
        output = self._model.ask_about_region("refinement", words, within, prior)
        found = segments_from_output(output, "referring")
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
        output = self._model.ask_about_region("refinement", words, request.box)
        turn = Turn("user", text or words, sent=words)
        return self._state.answer(
            turn, segments_from_output(output, "referring"), output.get("text")
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
        words = build_region_instruction(box if mask is None else None)
        output = self._model.ask_about_region("region", words, box, prior)
        found = segments_from_output(output, "referring")
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
        write_session(folder, self.image, self._state, self._predictor.cfg)
