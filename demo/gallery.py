"""A page with all pictures of a run, searched by the names in them; it opens without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rose_d2.files import write_text

_HERE = Path(__file__).resolve().parent


def write_gallery(folder: Path, pictures: str, content: dict[str, Any]) -> Path:
    """Write `gallery.html` beside the pictures it shows.

    Args:
        folder: the output of the run.
        pictures: its sub-folder with a JPEG an image.
        content: of `predictions.json`.

    Returns:
        The page.
    """
    names: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        names[annotation["image_id"]].append(annotation["category_name"])
    cards = [
        {
            "picture": quote(f"{pictures}/{image['result_name']}.jpg"),
            "file": image["file_name"],
            "names": sorted(set(names[image["id"]])),
        }
        for image in content["images"]
        if (folder / pictures / f"{image['result_name']}.jpg").is_file()
    ]
    loader = FileSystemLoader(_HERE)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    text = page.get_template("gallery.html.j2").render(cards=cards, info=content["info"])
    write_text(folder / "gallery.html", text)
    return folder / "gallery.html"
