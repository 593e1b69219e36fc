"""The web page in a real browser, and what each of its functions does without one."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, load_script

from rose_d2 import Results, Rose

pytest.importorskip("gradio", reason="the extra app is not installed")
EXAMPLE = ROOT / "demo" / "examples" / "clipart_002.jpg"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def app():
    return load_script("demo/app.py")


@pytest.fixture(scope="module")
def rose():
    return Rose.from_pretrained("tiny", device="cpu")


@pytest.fixture
def page(app, rose):
    return app.Page(rose)


@pytest.fixture(scope="module")
def pixels():
    with Image.open(EXAMPLE) as picture:
        return np.asarray(picture.convert("RGB"))


def click(x, y):
    return SimpleNamespace(index=(x, y))


@pytest.mark.slow
def test_a_visitor_segments_selects_repairs_and_takes_back(app, page, pixels):
    talk, *_ = page.segment(pixels, app.EVERYTHING, "", None)
    names = [segment.category_name for segment in talk.session.segments]
    assert len(names) > 3
    factor = app.drawing_factor(*talk.session.size)
    smallest = min(talk.session.segments, key=lambda segment: segment.mask.sum())
    row, column = np.argwhere(smallest.mask)[smallest.mask.sum() // 2]
    point = click((column + 0.5) * factor, (row + 0.5) * factor)
    _, picture, table, _, status, *files, line = page.click(talk, app.SELECT, point)
    assert talk.selected == smallest.id and smallest.category_name in status
    assert len(table) == len(names) and line == ""
    page.send(talk, f"This is not a {smallest.category_name}.")
    assert talk.session.segments[0].id != smallest.id or len(talk.session.dialogue) == 4
    assert talk.messages()[2]["content"].startswith("This is not a")
    page.undo(talk)
    assert [segment.category_name for segment in talk.session.segments] == names
    read = Results.from_json(Path(files[0]).read_text())
    assert len(read) == len(names) and Image.open(files[1]).size == pixels.shape[1::-1]
    folder = talk.folder
    other, *_ = page.segment(pixels, app.REFER, f"the {names[0]}", talk)
    assert not folder.exists(), "the files of the talk before are gone"
    assert len(other.session.segments) == 1 and len(talk.session.segments) == len(names)
    other.close()


@pytest.mark.slow
def test_two_clicks_mark_what_was_missed(app, page, pixels):
    talk, *_ = page.segment(pixels, app.LIST, "fox, tree", None)
    assert {s.category_name for s in talk.session.segments} <= {"fox", "tree"}
    count = len(talk.session.segments)
    *_, status, _, _, _, _ = page.click(talk, app.MISSED, click(30, 40))
    assert talk.corner is not None and "opposite corner" in status
    page.click(talk, app.MISSED, click(300, 5))
    assert talk.corner is None and len(talk.session.segments) == count + 1
    talk.close()


def test_mistakes_are_one_sentence_and_change_nothing(app, page):
    for call in (
        lambda: page.segment(None, app.EVERYTHING, "", None),
        lambda: page.send(None, "the dog"),
        lambda: page.undo(None),
        lambda: page.click(None, app.SELECT, click(0, 0)),
        lambda: page.segment(np.zeros((20, 20, 3), np.uint8), app.REFER, " ", None),
        lambda: page.segment(np.zeros((20, 20, 3), np.uint8), app.LIST, " , ", None),
    ):
        with pytest.raises(app.gr.Error):
            call()


def test_large_pictures_are_reduced_and_doubts_are_said(app):
    reduced, note = app._limited(np.zeros((3000, 6000, 3), np.uint8))
    assert reduced.shape == (1024, 2048, 3) and "6000 x 3000" in note
    sure = SimpleNamespace(name_score=0.99)
    unsure = SimpleNamespace(name_score=0.3)
    assert app.out_of_domain([sure, sure, SimpleNamespace(name_score=None)]) == ""
    assert "30% sure" in app.out_of_domain([unsure]) and app.out_of_domain([]) == ""


@pytest.fixture
def browser(tmp_path):
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromium-driver (Debian) are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    wanted = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
    for argument in (*wanted, "--window-size=1500,1300"):
        options.add_argument(argument)
    downloads = {"download.default_directory": str(tmp_path / "downloads")}
    options.add_experimental_option("prefs", downloads)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.slow
def test_the_page_in_chromium(app, rose, browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def one(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def wait(ready, seconds=90):
        return WebDriverWait(browser, seconds, ignored_exceptions=(Exception,)).until(
            lambda _: ready()
        )

    def said():
        turns = "#chat [data-testid=user], #chat [data-testid=bot]"
        return [turn.text for turn in browser.find_elements(By.CSS_SELECTOR, turns)]

    blocks = app.build(rose)
    _, address, _ = app.launch(blocks, prevent_thread_lock=True, quiet=True, server_port=None)
    try:
        browser.get(address)
        wait(lambda: one("#upload input[type=file]")).send_keys(str(EXAMPLE))
        wait(lambda: one("#upload img"))
        one("#segment").click()
        picture = wait(lambda: one("#picture img"))
        wait(lambda: len(said()) == 2)
        assert "fox" in said()[1]
        wait(lambda: "butterfly" in one("#table").text)

        # The middle of a segment, as a visitor sees it.
        scale = picture.size["width"] / 298
        fox = next(s for s in rose(str(EXAMPLE)) if s.category_name == "fox")
        row, column = np.argwhere(fox.mask)[fox.mask.sum() // 2]
        offset = scale * (column - 149), scale * (row - 149)
        ActionChains(browser).move_to_element_with_offset(
            picture, *map(int, offset)
        ).click().perform()
        wait(lambda: "Selected" in one("#status").text)
        assert "fox" in one("#status").text

        one("#line textarea, #line input").send_keys("This mask is incomplete.")
        one("#send").click()
        wait(lambda: len(said()) == 4)
        assert said()[2] == "This mask is incomplete."
        shot = tmp_path / "page.png"
        browser.save_screenshot(str(shot))
        if os.environ.get("ROSE_SCREENSHOTS"):
            shutil.copy(shot, os.environ["ROSE_SCREENSHOTS"])
        assert shot.stat().st_size > 50_000

        one("#undo").click()
        wait(lambda: len(said()) == 2)
        one("#download-json").click()
        saved = tmp_path / "downloads" / "segments.json"
        wait(saved.exists)
        time.sleep(0.2)
        assert "fox" in [entry["name"] for entry in json.loads(saved.read_text())["segments"]]
    finally:
        blocks.close()
