"""The memory of a session: its segments, its dialogue, and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from rose_d2.engine.session.session_records import (
    MODEL,
    USER,
    Answer,
    SessionSegment,
    Turn,
    describe,
)
from rose_d2.structures.segment import Segment


@dataclass
class SessionState:
    """Grows by whole exchanges, so that a failed question leaves no trace.

    Attributes:
        key: identifies the session, also after it was saved and reopened.
        known: every segment that stands or that `undo` can bring back, by id.
        standing: ids of the segments that stand, in the order they came.
        turns: the dialogue.
        past: what stood, and how many turns there were, before each exchange.
        next_id: of the next segment.
    """

    key: str
    known: dict[int, SessionSegment] = field(default_factory=dict)
    standing: tuple[int, ...] = ()
    turns: tuple[Turn, ...] = ()
    past: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    next_id: int = 1

    @property
    def segments(self) -> tuple[SessionSegment, ...]:
        """The segments that stand."""
        return tuple(self.known[i] for i in self.standing)

    def current(self, segment: object) -> SessionSegment:
        """The segment a user means.

        Args:
            segment: a segment of this session or its id.

        Raises:
            ValueError: it is of another session, or does not stand any more.
        """
        if isinstance(segment, SessionSegment):
            if segment.session_key != self.key:
                raise ValueError(
                    f"Segment {segment.id} ({segment.category_name!r}) belongs to another session; "
                    "ask that session, or bring it in with add(segment) if it is of this image."
                )
            segment_id = segment.id
        elif isinstance(segment, int) and not isinstance(segment, bool):
            segment_id = segment
        else:
            raise ValueError(
                f"Got {type(segment).__name__} where a segment of this session or its id is "
                "needed; bring a mask of your own in with add(Segment(mask, name, score))."
            )
        if segment_id not in self.standing:
            standing = ", ".join(map(str, self.standing)) or "none"
            raise ValueError(
                f"Segment {segment_id} does not stand in this session (standing: {standing}): it "
                "was refined, replaced or undone, or never was; take one of session.segments, or "
                "undo() what replaced it."
            )
        return self.known[segment_id]

    def answer(
        self,
        question: Turn,
        found: Sequence[Segment],
        text: str | None = None,
        *,
        replaced: Sequence[SessionSegment] = (),
        expression: str | None = None,
    ) -> Answer:
        """Remember a question and what the model found.

        Args:
            question: the user's turn.
            found: the model's segments.
            text: the model's own words; None lists the segments.
            replaced: segments whose place the found ones take; they stay if none was found.
            expression: what the found ones were asked for with, see `SessionSegment`; a replaced
                segment's is kept.
        """
        origin = replaced[0].id if len(replaced) == 1 and question.segment_ids else None
        if origin is not None:
            expression = self.known[origin].expression
        new = self._numbered(found, origin, expression)
        if not new and origin is not None:
            said = Turn(MODEL, text or f"I found nothing, {origin} stays as it is.", (origin,))
            self._commit((), (question, said), ())
            return Answer(tuple(replaced), self.turns)
        said = Turn(MODEL, text or describe(new), tuple(segment.id for segment in new))
        self._commit(new, (question, said), [segment.id for segment in replaced])
        return Answer(new, self.turns)

    def add(self, segments: Sequence[Segment], replaced: SessionSegment | None = None) -> Answer:
        """Remember segments that the user brought, in the place of another one if given."""
        new = self._numbered(segments, None if replaced is None else replaced.id)
        ids = tuple(segment.id for segment in new)
        place = "" if replaced is None else f" in the place of {replaced.id}"
        self._commit(
            new,
            (Turn(USER, f"I add {describe(new)}{place}", ids),),
            () if replaced is None else (replaced.id,),
        )
        return Answer(new, self.turns)

    def undo(self) -> Answer:
        """Forget the last exchange.

        Raises:
            ValueError: there was none.
        """
        if not self.past:
            raise ValueError("There is nothing to undo: nothing was asked in this session yet.")
        self.standing, count = self.past.pop()
        self.turns = self.turns[:count]
        reachable = {*self.standing, *(i for standing, _ in self.past for i in standing)}
        self.known = {i: segment for i, segment in self.known.items() if i in reachable}
        return Answer(self.segments, self.turns)

    def _numbered(
        self,
        segments: Sequence[Segment],
        origin: int | None = None,
        expression: str | None = None,
    ) -> tuple[SessionSegment, ...]:
        numbered = []
        for number, segment in enumerate(segments, start=self.next_id):
            mask = segment.mask.copy()
            # What is remembered must not change under the session's hands.
            mask.flags.writeable = False
            fields = {f.name: getattr(segment, f.name) for f in dataclasses.fields(Segment)}
            fields |= {"mask": mask, "replaces": origin, "expression": expression}
            numbered.append(SessionSegment(**fields, id=number, session_key=self.key))
        return tuple(numbered)

    def _commit(
        self, new: Sequence[SessionSegment], turns: Sequence[Turn], gone: Sequence[int]
    ) -> None:
        self.past.append((self.standing, len(self.turns)))
        self.known |= {segment.id: segment for segment in new}
        # A repaired segment stands where the old one stood.
        kept = [i for i in self.standing if i not in gone]
        place = min((self.standing.index(i) for i in gone), default=len(kept))
        self.standing = (*kept[:place], *(segment.id for segment in new), *kept[place:])
        self.turns = (*self.turns, *turns)
        self.next_id += len(new)
