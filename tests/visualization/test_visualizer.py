import matplotlib.image
import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from PIL import Image

from rose_d2.structures.category_names import CategoryNames
from rose_d2.visualization.visualizer import RoseVisualizer, colour_of, drawing_factor


def grey(height, width):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def texts(visualizer):
    return [text.get_text() for text in visualizer.output.ax.texts]


def square(size=(80, 100)):
    mask = np.zeros(size, dtype=bool)
    mask[20:60, 30:70] = True
    return mask


@pytest.mark.parametrize(
    ("size", "factor"), [((480, 640), 1), ((300, 400), 2), ((252, 252), 3), ((1, 1), 640)]
)
def test_small_images_are_enlarged_by_whole_numbers(size, factor):
    assert drawing_factor(*size) == factor


def test_huge_images_are_reduced():
    picture = RoseVisualizer(grey(10, 6400)).draw_segments([], []).get_image()
    assert picture.shape == (2, 1600, 3)


def test_the_mask_is_tinted_with_its_colour_and_nothing_else_is():
    mask = square()
    visualizer = RoseVisualizer(grey(80, 100), scale=4)
    picture = visualizer.draw_segments([mask], ["dog"], alpha=1.0).get_image()
    assert picture.shape == (320, 400, 3)
    centre = picture[200, 200] / 255
    assert centre == pytest.approx(colour_of("dog"), abs=0.01)
    assert (picture[300:, 300:] == 128).all()


def test_a_hole_stays_clear():
    mask = square()
    mask[35:45, 45:55] = False
    picture = RoseVisualizer(grey(80, 100), scale=4).draw_segments([mask], ["dog"]).get_image()
    assert (picture[160, 200] == 128).all()


def test_the_image_is_drawn_once_and_not_resampled(monkeypatch, tmp_path):
    resampled, resample = [], matplotlib.image._resample
    monkeypatch.setattr(
        matplotlib.image, "_resample", lambda *a, **k: resampled.append(a) or resample(*a, **k)
    )
    tiles = np.random.default_rng(0).integers(0, 256, (32, 35, 3), dtype=np.uint8)
    image = tiles.repeat(20, axis=0).repeat(20, axis=1)
    output = RoseVisualizer(image).draw_segments([], [])
    assert len(output.ax.get_images()) == 1
    assert np.array_equal(output.get_image(), image)
    assert resampled == []
    output.fig.savefig(tmp_path / "small.png", dpi=output.dpi / 2)  # in another resolution
    assert resampled
    small = np.asarray(Image.open(tmp_path / "small.png").convert("RGB"))
    assert np.array_equal(small[5::10, 5::10], tiles)


def test_small_things_are_drawn_over_large_ones_and_over_stuff():
    everything, small = np.ones((80, 100), dtype=bool), square()
    for order in ([0, 1], [1, 0]):
        masks, names = [everything, small], ["sand", "dog"]
        picture = (
            RoseVisualizer(grey(80, 100), scale=4)
            .draw_segments(
                [masks[i] for i in order],
                [names[i] for i in order],
                is_thing=[i == 1 for i in order],
                alpha=1.0,
            )
            .get_image()
        )
        assert picture[200, 200] / 255 == pytest.approx(colour_of("dog"), abs=0.01)


def test_labels_show_name_and_score():
    visualizer = RoseVisualizer(grey(80, 100))
    visualizer.draw_segments([square(), ~square()], ["dog", "grass"], [0.914, None])
    assert sorted(texts(visualizer)) == ["dog 91%", "grass"]


@pytest.mark.parametrize("name", ["", "a $5$ note", "x^2_$", "猫", "tab\tand\nline", "x" * 300])
def test_any_generated_name_can_be_drawn(name, recwarn):
    visualizer = RoseVisualizer(grey(80, 100))
    visualizer.draw_segments([square()], [name], [0.5]).get_image()
    (label,) = texts(visualizer)
    assert "\n" not in label
    assert len(label) < 60
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_instances_are_drawn_with_their_generated_names():
    instances = Instances(
        (80, 100),
        pred_masks=torch.from_numpy(np.stack([square(), ~square()])),
        scores=torch.tensor([0.6, 0.5]),
        name_scores=torch.tensor([0.9, 0.4]),
        pred_category_names=CategoryNames(["red car", "road"]),
        pred_classes=torch.tensor([-1, -1]),
    )
    visualizer = RoseVisualizer(grey(80, 100))
    visualizer.draw_instance_predictions(instances)
    assert sorted(texts(visualizer)) == ["red car 90%", "road 40%"]


def test_panoptic_segments_are_found_by_id_and_tiny_ones_can_be_left_out():
    ids = torch.zeros(80, 100, dtype=torch.int32)
    ids[20:60, 30:70], ids[0, 0] = 3, 7
    info = [
        {"id": 3, "isthing": True, "category_id": -1, "category_name": "dog", "name_score": 0.8},
        {"id": 7, "isthing": False, "category_id": -1, "category_name": "sky", "name_score": 0.7},
    ]
    visualizer = RoseVisualizer(grey(80, 100))
    visualizer.draw_panoptic_seg(ids, info, area_threshold=2)
    assert texts(visualizer) == ["dog 80%"]


def test_referring_tones_down_everything_else():
    image = grey(80, 100)
    image[..., 0] = 255
    visualizer = RoseVisualizer(image, scale=4)
    picture = visualizer.draw_referring(torch.from_numpy(square()), "the dog").get_image()
    assert texts(visualizer) == ["the dog"]
    outside = picture[300, 380].astype(int)
    assert outside.max() - outside.min() <= 1, "grey outside"
    assert int(picture[200, 200, 0]) - int(picture[200, 200, 2]) > 20, "colour inside"


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 3)])
def test_the_smallest_images_can_be_drawn(size):
    mask = np.ones(size, dtype=bool)
    picture = RoseVisualizer(grey(*size)).draw_segments([mask], ["dot"], [0.5]).get_image()
    assert max(picture.shape) >= 640


def test_masks_of_another_size_and_missing_names_are_refused():
    visualizer = RoseVisualizer(grey(80, 100))
    with pytest.raises(ValueError, match=r"\(80, 90\).*\(80, 100\)"):
        visualizer.draw_segments([np.ones((80, 90), dtype=bool)], ["dog"])
    with pytest.raises(ValueError, match="one of each"):
        visualizer.draw_segments([square()], [])


def test_a_name_has_one_colour_and_other_names_others():
    assert colour_of("red car") == colour_of("Red  Car ")
    colours = {colour_of(name) for name in ("dog", "cat", "grass", "sky", "red car", "wall")}
    assert len(colours) >= 5
    assert all(0 <= channel <= 1 for colour in colours for channel in colour)
