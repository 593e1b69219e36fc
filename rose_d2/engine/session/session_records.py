"""What a session remembers and hands out: segments with an id, turns and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from rose_d2.structures.segment import Segment

USER, MODEL = "user", "rose"


@dataclass(frozen=True, eq=False)
class SessionSegment(Segment):
    """A segment that its session can be asked about again; equal only to itself.

    Attributes:
        id: number within the session, from 1; never used twice, not even after `undo`.
        session_key: the session it belongs to.
        replaces: id of the segment that was refined or renamed into this one.
        expression: what was asked for, if this answered `RoseSession.refer`; also of a segment
            that was refined or renamed from such a one.
    """

    id: int = 0
    session_key: str = ""
    replaces: int | None = None
    expression: str | None = None


@dataclass(frozen=True)
class Turn:
    """One thing said.

    Attributes:
        who: "user" or "rose".
        text: what was said. ROSE's text is the response the language model wrote
            (TEST.GENERATE_RESPONSE), else a list of the segments.
        segment_ids: the segments spoken of, or found.
        sent: of a user's turn, the whole instruction as the model read it; else "".
    """

    who: str
    text: str
    segment_ids: tuple[int, ...] = ()
    sent: str = ""


@dataclass(frozen=True, eq=False)
class Answer(Sequence[SessionSegment]):
    """The segments of one answer, which it is a sequence of, and what was said up to it.

    Attributes:
        segments: what this turn gave, best first; empty where the model found nothing.
        dialogue: all turns so far, this one included.
    """

    segments: tuple[SessionSegment, ...]
    dialogue: tuple[Turn, ...]

    @overload
    def __getitem__(self, index: int) -> SessionSegment: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[SessionSegment, ...]: ...

    def __getitem__(self, index: int | slice) -> SessionSegment | tuple[SessionSegment, ...]:
        return self.segments[index]

    def __len__(self) -> int:
        return len(self.segments)


def describe(segments: Sequence[SessionSegment]) -> str:
    """Say what was found, for example "1 dog (0.93), 2 grass (0.88)": id, name, score."""
    if not segments:
        return "I found nothing."
    return ", ".join(f"{s.id} {s.category_name or '(no name)'} ({s.score:.2f})" for s in segments)
