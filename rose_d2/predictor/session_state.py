"""The memory of a session: its segments, its dialogue, and the way back."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from rose_d2.config.fingerprint import config_hash
from rose_d2.data.image_io import read_image
from rose_d2.files import whole_file, write_text
from rose_d2.structures.mask_codec import decode_mask, encode_mask
from rose_d2.structures.segments import Segment

logger = logging.getLogger(__name__)

USER, MODEL = "user", "rose"
IMAGE_FILE, SESSION_FILE = "image.png", "session.json"
_FORMAT, _VERSION = "rose_d2 session", 1


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
            fields = {f.name: getattr(segment, f.name) for f in dataclasses.fields(Segment)}
            fields |= {"replaces": origin, "expression": expression}
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
    """Say what was found, for example "1 dog (93 %), 2 grass": id, name, how sure of the name."""
    if not segments:
        return "I found nothing."
    return ", ".join(
        f"{s.id} {s.category_name or '(no name)'}"
        + ("" if s.name_score is None else f" ({100 * s.name_score:.0f} %)")
        for s in segments
    )


def write_session(
    folder: str | os.PathLike[str], image: np.ndarray, state: SessionState, cfg: CfgNode
) -> None:
    """Save a session; saving it again into the same folder replaces it.

    Args:
        folder: is made if need be.
        image: uint8 (H, W, 3), RGB.
        state: what the session remembers.
        cfg: of the model that answered.

    Raises:
        ValueError: the folder holds another session or a file of this name.
    """
    folder = Path(folder).expanduser()
    path = folder / SESSION_FILE
    if path.exists() and _stored_key(path) != state.key:
        raise ValueError(f"{path} is of another session; save this one to another folder.")
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "key": state.key,
        "config_hash": config_hash(cfg),
        "height": image.shape[0],
        "width": image.shape[1],
        "next_id": state.next_id,
        "standing": state.standing,
        "segments": [_encoded(segment) for segment in state.known.values()],
        "turns": [vars(turn) for turn in state.turns],
        "past": [{"standing": ids, "turns": count} for ids, count in state.past],
    }
    with whole_file(folder / IMAGE_FILE) as partial:
        Image.fromarray(image).save(partial)
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read_session(folder: str | os.PathLike[str], cfg: CfgNode) -> tuple[np.ndarray, SessionState]:
    """Read what `write_session` wrote.

    Args:
        folder: where it is.
        cfg: of the model that will answer; another one than before is logged.

    Returns:
        The image and the state.

    Raises:
        FileNotFoundError: there is no session in the folder.
        ValueError: `session.json` or the image is damaged, or they do not belong together.
    """
    path = Path(folder).expanduser() / SESSION_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {SESSION_FILE} in {str(folder)!r}; check the folder.")
    image = read_image(str(path.with_name(IMAGE_FILE)))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        state = _state(content, image.shape[:2])
        made_with = content["config_hash"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be reopened, it is damaged or not a session of this version "
            f"({error!r}); give a folder that RoseSession.save wrote."
        ) from error
    if made_with != config_hash(cfg):
        logger.warning("The session in %s was held with another config.", folder)
    return image, state


def _state(content: dict[str, Any], size: tuple[int, int]) -> SessionState:
    if (content["format"], content["version"]) != (_FORMAT, _VERSION):
        raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
    if (content["height"], content["width"]) != size:
        raise ValueError(f"its image is {size[0]} x {size[1]} (height x width)")
    segments = [_decoded(entry, content["key"], size) for entry in content["segments"]]
    turns = tuple(_turn(entry) for entry in content["turns"])
    state = SessionState(
        key=str(content["key"]),
        known={segment.id: segment for segment in segments},
        standing=tuple(content["standing"]),
        turns=turns,
        past=[(tuple(entry["standing"]), int(entry["turns"])) for entry in content["past"]],
        next_id=int(content["next_id"]),
    )
    _check(state)
    return state


def _check(state: SessionState) -> None:
    named = [*state.standing, *(i for standing, _ in state.past for i in standing)]
    if not set(named) <= set(state.known) or state.next_id <= max(state.known, default=0):
        raise ValueError("segments are missing")
    counts = [count for _, count in state.past]
    if counts != sorted(counts) or any(not 0 <= count <= len(state.turns) for count in counts):
        raise ValueError("turns are missing")


def _encoded(segment: SessionSegment) -> dict[str, Any]:
    return {
        "id": segment.id,
        "replaces": segment.replaces,
        "expression": segment.expression,
        "category_name": segment.category_name,
        "score": float(segment.score),
        "name_score": None if segment.name_score is None else float(segment.name_score),
        "is_thing": bool(segment.is_thing),
        "segmentation": encode_mask(segment.mask),
    }


def _decoded(entry: dict[str, Any], key: str, size: tuple[int, int]) -> SessionSegment:
    rle = entry["segmentation"]
    if tuple(rle["size"]) != size:
        raise ValueError(f"segment {entry['id']} has a mask of size {rle['size']}")
    name_score, replaces = entry["name_score"], entry["replaces"]
    expression = entry["expression"]
    return SessionSegment(
        mask=decode_mask(rle, *size),
        category_name=str(entry["category_name"]),
        score=float(entry["score"]),
        name_score=None if name_score is None else float(name_score),
        is_thing=bool(entry["is_thing"]),
        id=int(entry["id"]),
        session_key=str(key),
        replaces=None if replaces is None else int(replaces),
        expression=None if expression is None else str(expression),
    )


def _turn(entry: dict[str, Any]) -> Turn:
    if entry["who"] not in (USER, MODEL):
        raise ValueError(f"a turn of {entry['who']!r}")
    ids = tuple(int(i) for i in entry["segment_ids"])
    return Turn(entry["who"], str(entry["text"]), ids, str(entry["sent"]))


def _stored_key(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["key"])
    except (ValueError, KeyError, TypeError):
        return None
