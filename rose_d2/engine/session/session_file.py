"""A session as a folder: `image.png` and `session.json`, with masks run-length encoded."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import CfgNode
from PIL import Image

from rose_d2.data.image_io import read_image
from rose_d2.engine.provenance import config_hash
from rose_d2.engine.session.session_records import MODEL, USER, SessionSegment, Turn
from rose_d2.engine.session.session_state import SessionState

logger = logging.getLogger(__name__)

IMAGE_FILE, SESSION_FILE = "image.png", "session.json"
_FORMAT, _VERSION = "rose_d2 session", 1


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
    folder.mkdir(parents=True, exist_ok=True)
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
    partial = folder / f".partial-{IMAGE_FILE}"
    Image.fromarray(image).save(partial)
    os.replace(partial, folder / IMAGE_FILE)
    partial = path.with_name(f".partial-{SESSION_FILE}")
    partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


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
    rle = mask_util.encode(np.asfortranarray(segment.mask, dtype=np.uint8))
    counts = rle["counts"].decode("ascii")
    return {
        "id": segment.id,
        "replaces": segment.replaces,
        "expression": segment.expression,
        "category_name": segment.category_name,
        "score": float(segment.score),
        "name_score": None if segment.name_score is None else float(segment.name_score),
        "is_thing": bool(segment.is_thing),
        "segmentation": {"size": list(rle["size"]), "counts": counts},
    }


def _decoded(entry: dict[str, Any], key: str, size: tuple[int, int]) -> SessionSegment:
    rle = entry["segmentation"]
    if tuple(rle["size"]) != size:
        raise ValueError(f"segment {entry['id']} has a mask of size {rle['size']}")
    counts = rle["counts"].encode("ascii")
    mask = mask_util.decode({"size": list(size), "counts": counts}).astype(bool)
    mask.flags.writeable = False
    name_score, replaces = entry["name_score"], entry["replaces"]
    expression = entry["expression"]
    return SessionSegment(
        mask=mask,
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
