"""A page with all pictures of a run, searched by the names in them; it opens without a server."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rose_d2.files import write_text
from rose_d2.predictor.predictions_file import PredictionsFile

_HERE = Path(__file__).resolve().parent


def write_gallery(folder: Path, pictures: str, predictions: PredictionsFile) -> Path:
    """Write `gallery.html` beside the pictures it shows.

    Args:
        folder: the output of the run.
        pictures: its sub-folder with a JPEG an image.
        predictions: of the run.

    Returns:
        The page.
    """
    cards = [
        {
            "picture": quote(f"{pictures}/{image['result_name']}.jpg"),
            "file": image["file_name"],
            "names": predictions.names(image["file_name"]),
        }
        for image in predictions.images()
        if (folder / pictures / f"{image['result_name']}.jpg").is_file()
    ]
    loader = FileSystemLoader(_HERE)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    text = page.get_template("gallery.html.j2").render(cards=cards, info=predictions.info)
    write_text(folder / "gallery.html", text)
    return folder / "gallery.html"
