r"""Hold a written conversation about an image: a picture a turn and a transcript in Markdown.

    python tools/show_session.py --config-file configs/rose_tiny.yaml --image photo.jpg \
        --script talk.txt --output output/talk MODEL.WEIGHTS checkpoints/rose_tiny

The script has one turn a line; lines that begin with # are skipped. SEGMENT is an id, a name (the
latest segment of that name), "last" for the latest of all, or a name of several words in double
quotes:

    segment [semantic|instance|panoptic]
    refer TEXT                   the blue car on the left
    refine SEGMENT TEXT          "red car" this mask is incomplete
    name SEGMENT                 or: name X1 Y1 X2 Y2
    missed X1 Y1 X2 Y2
    undo
    damage SEGMENT               put a worse mask in its place, as if of another system
    misname SEGMENT NAME         put another name in its place
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import rose_d2  # noqa: F401  (registers the model)
from rose_d2.command_line import add_config_arguments, make_parser, run_main
from rose_d2.config.read import read_released_config
from rose_d2.data.image_io import read_image
from rose_d2.data.mask_corruption import holes_and_patches
from rose_d2.predictor.predictor import RosePredictor
from rose_d2.predictor.session import RoseSession
from rose_d2.predictor.session_state import Answer, SessionSegment
from rose_d2.structures.segments import Segment
from rose_d2.visualization.sheets import contact_sheet
from rose_d2.visualization.visualizer import RoseVisualizer

COMMANDS = ("segment", "refer", "refine", "name", "missed", "undo", "damage", "misname")
BOX_INK, BOX_WIDTH = (255, 0, 0), 3
_SEGMENT = re.compile(r'("(?P<quoted>[^"]+)"|(?P<word>\S+))\s*(?P<rest>.*)')


@dataclass(frozen=True)
class ShownTurn:
    """One turn of the script as the transcript tells it: who asked what, the answer, pictures."""

    you: str
    rose: str
    before: np.ndarray
    after: np.ndarray


class ScriptedSession:
    """Says the lines of a script to a session and draws what comes back."""

    def __init__(self, session: RoseSession, panel: int, seed: int = 0) -> None:
        """
        Args:
            session: the session.
            panel: longest side of a picture in pixels.
            seed: of the damage that `damage` does.
        """
        self.session = session
        self.scale = panel / max(session.size)
        self.rng = np.random.default_rng(seed)

    def say(self, line: str) -> ShownTurn:
        """Do one line of the script.

        Raises:
            ValueError: the line is no turn, or the session refuses it.
        """
        command, _, rest = line.strip().partition(" ")
        if command not in COMMANDS:
            raise ValueError(f"{line!r}: a turn begins with one of {', '.join(COMMANDS)}.")
        turn: ShownTurn = getattr(self, f"_{command}")(rest.strip())
        return turn

    def _segment(self, task: str) -> ShownTurn:
        return self._shown(self.session.segment(task or None), self._drawn())

    def _refer(self, text: str) -> ShownTurn:
        return self._shown(self.session.refer(text), self._drawn())

    def _refine(self, rest: str) -> ShownTurn:
        old, text = self._find(rest)
        return self._shown(self.session.refine(old, text), self._drawn([old]))

    def _name(self, rest: str) -> ShownTurn:
        if (box := _box(rest)) is not None:
            return self._shown(self.session.name(box), self._drawn(box=box))
        old, _ = self._find(rest)
        return self._shown(self.session.name(old), self._drawn([old]))

    def _missed(self, rest: str) -> ShownTurn:
        box = _box(rest)
        if box is None:
            raise ValueError(f"'missed {rest}' needs four numbers: missed X1 Y1 X2 Y2.")
        return self._shown(self.session.missed(box), self._drawn(box=box))

    def _undo(self, rest: str) -> ShownTurn:
        before = self._drawn(self.session.segments)
        answer = self.session.undo()
        standing = ", ".join(f"{s.id} {s.category_name}" for s in answer) or "nothing"
        return ShownTurn("(undo)", f"As before: {standing}.", before, self._drawn(answer))

    def _damage(self, rest: str) -> ShownTurn:
        old, _ = self._find(rest)
        mask = holes_and_patches(np.asarray(old.mask), self.rng)
        return self._brought(Segment(mask, old.category_name, old.score), old)

    def _misname(self, rest: str) -> ShownTurn:
        old, name = self._find(rest)
        return self._brought(Segment(old.mask, name, old.score), old)

    def _brought(self, segment: Segment, old: SessionSegment) -> ShownTurn:
        answer = self.session.add(segment, replacing=old)
        you = f"Another system says: {answer[0].id} {segment.category_name}."
        return ShownTurn(you, "", self._drawn([old]), self._drawn(answer))

    def _shown(self, answer: Answer, before: np.ndarray) -> ShownTurn:
        you, rose = answer.dialogue[-2:]
        spoken_of = ", ".join(map(str, you.segment_ids))
        text = f"(about {spoken_of}) {you.text}" if spoken_of else you.text
        return ShownTurn(text, rose.text, before, self._drawn(answer))

    def _find(self, rest: str) -> tuple[SessionSegment, str]:
        """The segment a line speaks of, and the rest of the line."""
        parts = _SEGMENT.match(rest)
        if parts is None:
            raise ValueError("The line speaks of no segment; write its id or its name.")
        wanted = parts["quoted"] or parts["word"]
        latest_last = sorted(self.session.segments, key=lambda segment: segment.id)
        found = [s for s in latest_last if wanted in (str(s.id), s.category_name, "last")]
        if not found:
            known = ", ".join(f"{s.id} {s.category_name!r}" for s in self.session.segments)
            raise ValueError(f"There is no segment {wanted!r}; there are: {known or 'none'}.")
        return found[-1], parts["rest"]

    def _drawn(
        self, segments: Sequence[Segment] = (), box: Sequence[float] | None = None
    ) -> np.ndarray:
        picture = RoseVisualizer(self.session.image, scale=self.scale).draw_segments(
            [segment.mask for segment in segments],
            [segment.category_name for segment in segments],
            is_thing=[segment.is_thing for segment in segments],
        )
        pixels = Image.fromarray(picture.get_image())
        if box is not None:
            edges = [edge * self.scale for edge in box]
            ImageDraw.Draw(pixels).rectangle(edges, outline=BOX_INK, width=BOX_WIDTH)
        return np.asarray(pixels)


def write_transcript(turns: Sequence[ShownTurn], folder: Path, panel: int) -> Path:
    """Write a picture a turn, and the transcript that shows them.

    Args:
        turns: the conversation.
        folder: is made if need be; gets `turn_1.jpg` ... and `transcript.md`.
        panel: width of one of the two pictures of a turn.

    Returns:
        The transcript's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, turn in enumerate(turns, start=1):
        picture = contact_sheet([turn.before, turn.after], columns=2, cell=panel)
        Image.fromarray(picture).save(folder / f"turn_{number}.jpg", quality=88)
        lines += [f"**You:** {turn.you}", ""]
        lines += [f"**ROSE:** {turn.rose}", ""] if turn.rose else []
        lines += [f"![turn {number}](turn_{number}.jpg)", ""]
    path = folder / "transcript.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _box(text: str) -> list[float] | None:
    words = text.split()
    if len(words) != 4 or not all(re.fullmatch(r"-?\d+(\.\d+)?", word) for word in words):
        return None
    return [float(word) for word in words]


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--image", required=True, help="the image that is talked about")
    parser.add_argument("--script", type=Path, required=True, help="the turns, one a line")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--panel", type=int, default=280, help="size of a picture in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the damage that 'damage' does")
    args = parser.parse_args(arguments)
    if args.panel < 32:
        parser.error("--panel must be at least 32")
    return args


def show(args: argparse.Namespace) -> None:
    """Hold the conversation and say where the transcript is."""
    script = args.script.read_text(encoding="utf-8").splitlines()
    lines = [line for line in script if line.strip() and not line.startswith("#")]
    cfg = read_released_config(args.config_file, args.opts)
    session = RosePredictor(cfg).open(read_image(args.image))
    held = ScriptedSession(session, args.panel, args.seed)
    turns = [held.say(line) for line in lines]
    path = write_transcript(turns, args.output, args.panel)
    print(f"{len(turns)} turns are in {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(show, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
