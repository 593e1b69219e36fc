import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from rose_d2.reports.image_scores import ImageSegments
from rose_d2.reports.page import draw_segments, jpeg_data_uri

IMAGE = np.full((24, 40, 3), 120, dtype=np.uint8)


def segments(*slices):
    masks = torch.zeros(len(slices), 24, 40, dtype=torch.bool)
    for mask, where in zip(masks, slices):
        mask[where] = True
    count = len(slices)
    return ImageSegments(masks, ["dog"] * count, [0] * count, [True] * count, [0.5] * count)


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


def test_segments_are_drawn_where_they_are():
    picture = draw_segments(IMAGE, segments(np.s_[:, :20]), None)
    changed = (picture != 120).any(axis=2)
    middle = picture.shape[1] // 2
    assert changed[:, : middle - 8].all()
    assert changed[:, middle + 8 :].mean() < 0.3  # only its label reaches there


def test_no_segments_leave_the_image():
    assert (draw_segments(IMAGE, segments(), None) == 120).all()


def test_answer_tones_the_rest_down_and_an_empty_one_does_not():
    answered = draw_segments(IMAGE, segments(np.s_[:, :20]), "left")
    assert answered[-3, -3].tolist() != [120, 120, 120]
    assert (draw_segments(IMAGE, segments(np.s_[:0]), "left") == 120).all()


def test_size_gives_way_to_the_budget():
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    large, small = (decoded(jpeg_data_uri(noise, budget)) for budget in (10**7, 60_000))
    assert large.size == (640, 480)
    assert small.size[0] < 640
    assert len(jpeg_data_uri(noise, 60_000)) < 60_000 * 4 / 3 + 40


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="mask of size"):
        draw_segments(IMAGE[:12], segments(np.s_[:]), None)
