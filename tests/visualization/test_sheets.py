import numpy as np
import pytest

from rose_d2.visualization.sheets import contact_sheet


def test_contact_sheet_places_every_picture():
    red, blue = np.zeros((2, 40, 80, 3), dtype=np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = contact_sheet([red, blue, red], ["one", "a much too long caption " * 9, ""], cell=100)
    reds = (sheet[..., 0] > 200) & (sheet[..., 2] < 50)
    blues = (sheet[..., 2] > 200) & (sheet[..., 0] < 50)
    assert reds.sum() == pytest.approx(2 * 100 * 50, rel=0.05)
    assert blues.sum() == pytest.approx(100 * 50, rel=0.05)
    assert sheet.shape[1] == 2 * 100 + 3 * 12


def test_contact_sheet_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
    with pytest.raises(ValueError, match="2 captions for 1"):
        contact_sheet([np.zeros((2, 2, 3), dtype=np.uint8)], ["a", "b"])


def test_a_picture_of_one_column_has_a_cell():
    assert contact_sheet([np.zeros((3000, 1, 3), dtype=np.uint8)]).any()
