"""A web page for ROSE: segment a picture, click on what is wrong, and talk until it is right.

    python demo/app.py                      # the tiny model, http://127.0.0.1:7860
    python demo/app.py --model output/exported --host 0.0.0.0
    python demo/app.py --share              # a public address for three days, through Gradio

Every visitor has a conversation of their own; nothing is kept when it ends.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent)] if (_HERE.parent / "rose_d2").is_dir() else []

from rose_d2 import Results, Rose  # noqa: E402
from rose_d2.dependencies import require  # noqa: E402
from rose_d2.predictor.session import RoseSession  # noqa: E402
from rose_d2.structures.segments import Segment  # noqa: E402
from rose_d2.visualization.visualizer import RoseVisualizer, drawing_factor  # noqa: E402

gr = require("gradio", "The web page")

EVERYTHING, REFER, LIST = "everything", "one object, described", "names from a list"
SELECT, MISSED = "select a segment", "mark what was missed (two corners)"
# A picture's longest side; larger ones are reduced, as a browser would for showing them.
MAX_SIDE = 2048
MAX_UPLOAD = "20mb"
WAITING, IDLE_S = 16, 30 * 60
# Mean probability of the names below which a picture is said to be out of the model's domain. With
# the tiny model it is 0.96 to 0.99 on eight clip-art scenes, 0.84 on a photograph, 0.87 on noise.
DOMAIN_CONFIDENCE = 0.92
HEADERS = ["id", "name", "sure of it", "objectness", "kind", "pixels"]
ACCENT = (255, 200, 0)


class Talk:
    """One visitor's conversation about one picture."""

    def __init__(self, session: RoseSession, note: str = "") -> None:
        self.session = session
        self.note = note
        self.selected: int | None = None
        self.corner: tuple[float, float] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="rose_"))

    def close(self) -> None:
        """Forget the files that were made for downloading."""
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()

    def results(self) -> Results:
        """What stands now."""
        return Results(self.session.image, self.session.segments, "panoptic")

    def at(self, x: float, y: float) -> int | None:
        """The id of the smallest segment at a point of the image."""
        column, row = int(x), int(y)
        hit = [s for s in self.session.segments if s.mask[row, column]]
        return min(hit, key=lambda segment: segment.mask.sum()).id if hit else None

    def picture(self) -> np.ndarray:
        """The image with its segments; a selected one in front of a darker rest."""
        segments = self.session.segments
        shown = [s for s in segments if self.selected in (None, s.id)]
        image = self.session.image
        if self.selected is not None:
            image = np.where(shown[0].mask[..., None], image, image // 2)
        visualizer = RoseVisualizer(image)
        drawn = visualizer.draw_segments(
            [segment.mask for segment in shown],
            [segment.category_name or "(no name)" for segment in shown],
            [segment.name_score for segment in shown],
            is_thing=[segment.is_thing for segment in shown],
        ).get_image()
        canvas = Image.fromarray(drawn)
        if self.corner is not None:
            x, y = (value * visualizer.factor for value in self.corner)
            ImageDraw.Draw(canvas).ellipse((x - 6, y - 6, x + 6, y + 6), fill=ACCENT)
        return np.asarray(canvas)

    def table(self) -> list[list[Any]]:
        """One row a segment."""
        return [
            [
                segment.id,
                segment.category_name,
                "" if segment.name_score is None else f"{segment.name_score:.0%}",
                f"{segment.score:.0%}",
                "thing" if segment.is_thing else "stuff",
                int(segment.mask.sum()),
            ]
            for segment in self.session.segments
        ]

    def messages(self) -> list[dict[str, str]]:
        """The dialogue as a chat; long instructions are shortened to what was meant."""
        roles = {"user": "user", "rose": "assistant"}
        return [{"role": roles[turn.who], "content": turn.text} for turn in self.session.dialogue]

    def status(self) -> str:
        """What is selected, what to do next, and a doubt about the picture."""
        if self.corner is not None:
            said = "Now click on the opposite corner of what was missed."
        elif self.selected is not None:
            (segment,) = (s for s in self.session.segments if s.id == self.selected)
            said = (
                f"Selected: **{segment.id} {segment.category_name}**. Say what is wrong with it, "
                f"for example “this mask is incomplete” or “this is not a {segment.category_name}”."
            )
        else:
            said = "Click on a segment to talk about it, or describe an object that you look for."
        return " ".join([said, self.note, out_of_domain(self.session.segments)]).strip()

    def files(self) -> list[str]:
        """JSON, masks and picture, for downloading."""
        results = self.results()
        masks, _ = results.to_panoptic()
        Image.fromarray(masks).save(self.folder / "masks.png")
        results.save(self.folder / "segments.json")
        results.save(self.folder / "picture.jpg")
        return [str(self.folder / name) for name in ("segments.json", "masks.png", "picture.jpg")]


def out_of_domain(segments: Sequence[Segment]) -> str:
    """A doubt, where the model is unsure of most names; else nothing."""
    known = [segment.name_score for segment in segments if segment.name_score is not None]
    if not known or np.mean(known) >= DOMAIN_CONFIDENCE:
        return ""
    return (
        f"⚠️ The model is only {np.mean(known):.0%} sure of its names: this picture looks unlike "
        "those it was trained on, so do not trust names and masks."
    )


class Page:
    """What the page does; every function takes a visitor's talk and returns what is shown."""

    def __init__(self, rose: Rose) -> None:
        self.rose = rose

    def segment(
        self, picture: np.ndarray | None, question: str, words: str, old: Talk | None
    ) -> list[Any]:
        """Begin a talk about a picture."""
        if picture is None:
            raise gr.Error("Upload a picture, or take one of the examples.", print_exception=False)
        picture, note = _limited(picture)
        started = time.monotonic()
        talk = Talk(self.rose.open(picture), note)
        if question == REFER:
            _say(talk.session.refer, words)
        else:
            names = [name.strip() for name in words.split(",") if name.strip()]
            candidates = names if question == LIST else None
            _say(talk.session.segment, None, candidates, self.rose.min_score)
        talk.note += f" ({time.monotonic() - started:.1f} s)"
        if old is not None:
            old.close()
        return self.show(talk)

    def click(self, talk: Talk | None, mode: str, event: gr.SelectData) -> list[Any]:
        """Select what was clicked on, or take a corner of what was missed."""
        if talk is None:
            raise gr.Error("Segment a picture first.", print_exception=False)
        factor = drawing_factor(*talk.session.size)
        height, width = talk.session.size
        x = min(max(event.index[0] / factor, 0), width - 1)
        y = min(max(event.index[1] / factor, 0), height - 1)
        if mode == SELECT:
            hit = talk.at(x, y)
            talk.selected = None if hit == talk.selected else hit
        elif talk.corner is None:
            talk.corner = x, y
        else:
            (x0, y0), talk.corner = talk.corner, None
            _say(talk.session.missed, (min(x, x0), min(y, y0), max(x, x0) + 1, max(y, y0) + 1))
        return self.show(talk)

    def send(self, talk: Talk | None, words: str) -> list[Any]:
        """Repair the selected segment as the words say; without one, look for what they say."""
        if talk is None:
            raise gr.Error("Segment a picture first.", print_exception=False)
        if talk.selected is None:
            answer = _say(talk.session.refer, words)
        else:
            answer = _say(talk.session.refine, talk.selected, words)
        talk.selected = answer[0].id if len(answer) else talk.selected
        return self.show(talk)

    def undo(self, talk: Talk | None) -> list[Any]:
        """Take the last question back."""
        if talk is None:
            raise gr.Error("There is nothing to undo.", print_exception=False)
        _say(talk.session.undo)
        return self.show(talk)

    def show(self, talk: Talk) -> list[Any]:
        """Everything the page shows of a talk."""
        if talk.selected not in {segment.id for segment in talk.session.segments}:
            talk.selected = None
        shown = [talk, talk.picture(), talk.table(), talk.messages(), talk.status()]
        return [*shown, *talk.files(), ""]


def _say(turn: Callable[..., Any], *arguments: Any) -> Any:
    """Ask the session; what a visitor can cause is shown on the page and changes nothing."""
    try:
        return turn(*arguments)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _limited(picture: np.ndarray) -> tuple[np.ndarray, str]:
    """A picture of at most MAX_SIDE pixels a side, and a word about it."""
    height, width = picture.shape[:2]
    if max(height, width) <= MAX_SIDE:
        return picture, ""
    image = Image.fromarray(picture)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(image), f"Reduced from {width} x {height} to {image.width} x {image.height}."


def build(rose: Rose, examples: Sequence[str] = ()) -> gr.Blocks:
    """Lay the page out.

    Args:
        rose: answers; shared by all visitors, one at a time.
        examples: pictures to begin with.
    """
    page = Page(rose)
    with gr.Blocks(title="ROSE", fill_width=True, delete_cache=(IDLE_S, IDLE_S)) as blocks:
        talk = gr.State(time_to_live=IDLE_S, delete_callback=lambda kept: kept and kept.close())
        gr.Markdown("# ROSE\nSegments everything in a picture and names it. Talk to repair it.")
        with gr.Row():
            with gr.Column(scale=2):
                upload = gr.Image(
                    label="your picture", type="numpy", image_mode="RGB", elem_id="upload",
                    sources=["upload", "clipboard"], height=260,
                )  # fmt: skip
                question = gr.Radio([EVERYTHING, REFER, LIST], value=EVERYTHING, label="look for")
                words = gr.Textbox(
                    label="description, or names with commas", elem_id="words", max_length=300
                )
                begin = gr.Button("Segment", variant="primary", elem_id="segment")
                if examples:
                    gr.Examples([[file] for file in examples], [upload], label="examples")
            with gr.Column(scale=4):
                picture = gr.Image(
                    label="segments", interactive=False, elem_id="picture", format="png",
                    buttons=["fullscreen"],
                )  # fmt: skip
                status = gr.Markdown(elem_id="status")
                mode = gr.Radio(
                    [SELECT, MISSED], value=SELECT, label="a click on the picture",
                    elem_id="mode",
                )  # fmt: skip
                table = gr.Dataframe(headers=HEADERS, interactive=False, elem_id="table")
            with gr.Column(scale=3):
                chat = gr.Chatbot(label="talk", elem_id="chat", height=420, buttons=["copy"])
                line = gr.Textbox(
                    label="what is wrong, or what to look for", elem_id="line", max_length=300
                )
                with gr.Row():
                    send = gr.Button("Send", elem_id="send")
                    undo = gr.Button("Undo", elem_id="undo")
                with gr.Row():
                    downloads = [
                        gr.DownloadButton(f"↓ {label}", elem_id=f"download-{label.lower()}")
                        for label in ("JSON", "Masks", "Picture")
                    ]
        shown = [talk, picture, table, chat, status, *downloads, line]
        begin.click(page.segment, [upload, question, words, talk], shown)
        words.submit(page.segment, [upload, question, words, talk], shown)
        picture.select(page.click, [talk, mode], shown)
        send.click(page.send, [talk, line], shown)
        line.submit(page.send, [talk, line], shown)
        undo.click(page.undo, [talk], shown)
    # One model: one question at a time, the others wait.
    return blocks.queue(max_size=WAITING, default_concurrency_limit=1)


def launch(blocks: gr.Blocks, **options: Any) -> Any:
    """Serve a page with the limits of this app; see `gradio.Blocks.launch`."""
    return blocks.launch(
        max_file_size=MAX_UPLOAD,
        theme=gr.themes.Default(font=["system-ui"], font_mono=["monospace"]),
        footer_links=[],
        **options,
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="tiny", help="see Rose.from_pretrained; default: %(default)s"
    )
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--examples", help="a folder of pictures to begin with")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="a public address through Gradio")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until it is stopped."""
    args = parse_args(argv)
    try:
        rose = Rose.from_pretrained(args.model, device=args.device)
    except (ValueError, OSError) as error:
        print(f"app.py: error: {error}", file=sys.stderr)
        return 2
    folder = Path(args.examples) if args.examples else _HERE / "examples"
    examples = [str(file) for file in sorted(folder.glob("*.jpg"))]
    launch(build(rose, examples), server_name=args.host, server_port=args.port, share=args.share)
    return 0


if __name__ == "__main__":
    sys.exit(main())
