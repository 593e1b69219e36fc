import math

import numpy as np
import pytest
from PIL import Image

from rose_d2.reports.curve import alignment_curves, curve_file_name, draw_alignment_curve

LEVELS = {"exact": 20.0, "normalised": 25.0, "synonym": 27.0, "wordnet synonym": 30.0}


def test_curves_are_the_tasks_with_levels():
    tasks = {"segm": {"AP": 1.0}, "segm_levels": LEVELS, "sem_seg_levels": {}}
    assert alignment_curves(tasks) == {"AP (masks)": LEVELS}
    assert list(alignment_curves({"new_levels": LEVELS})) == ["new"]


def test_names_are_left_out_on_demand():
    tasks = {"segm_levels": LEVELS, "names_levels": LEVELS}
    assert list(alignment_curves(tasks)) == ["AP (masks)", "right class"]
    assert list(alignment_curves(tasks, with_names=False)) == ["AP (masks)"]


def test_file_name_has_no_folders_or_spaces():
    assert curve_file_name("ade20k_sem_seg_val") == "alignment_curve_ade20k_sem_seg_val.png"
    assert curve_file_name("../my data") == "alignment_curve_.._my_data.png"


def test_picture_is_800_wide_and_the_same_twice(tmp_path):
    for name in ("a.png", "b.png"):
        draw_alignment_curve(tmp_path / name, "toy", {"PQ": LEVELS}, "synonym")
    assert Image.open(tmp_path / "a.png").width == 800
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("last", [math.nan, None])
def test_unknown_and_flat_scores_are_drawn(tmp_path, last):
    flat = dict.fromkeys(LEVELS, 20.0) | {"synonym": last}
    draw_alignment_curve(tmp_path / "flat.png", "toy", {"PQ": flat}, "similarity")
    only_unknown = dict.fromkeys(LEVELS, last)
    draw_alignment_curve(tmp_path / "none.png", "toy", {"PQ": only_unknown}, "exact")
    assert np.asarray(Image.open(tmp_path / "flat.png")).std() > 0


def test_every_curve_and_the_headline_are_seen(tmp_path):
    def picture(curves, headline="part"):
        draw_alignment_curve(tmp_path / "p.png", "toy", curves, headline)
        return np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).reshape(-1, 3).tolist()

    one, two = picture({"a": LEVELS}), picture({"a": LEVELS, "b": dict.fromkeys(LEVELS, 22.0)})
    orange = [0xD5, 0x5E, 0x00]
    assert orange not in one
    assert orange in two
    assert picture({"a": LEVELS}, "synonym") != one
