import pytest

from rose_d2.data.datasets.clipart import HELD_OUT_NAMES
from rose_d2.synthetic.clipart import BenchmarkSettings, compose_split_scene


def test_settings_refuse_what_cannot_be_made():
    sizes = {"train": 1, "val": 1, "val_unseen": 1}
    with pytest.raises(ValueError, match="seed is -1"):
        BenchmarkSettings(-1, sizes)
    with pytest.raises(ValueError, match=r"\['train'\].*val_unseen"):
        BenchmarkSettings(0, {"train": 1})
    with pytest.raises(ValueError, match="900000 scenes asked for split train"):
        BenchmarkSettings(0, sizes | {"train": 900_000})


def test_only_val_unseen_shows_held_out_names():
    for split in ("train", "val", "val_unseen"):
        for number in range(8):
            scene, _ = compose_split_scene(0, split, number)
            shown = {thing.name for thing in scene.objects} & set(HELD_OUT_NAMES)
            assert bool(shown) == (split == "val_unseen")


def test_splits_and_numbers_give_different_scenes():
    boxes = [
        tuple(thing.box for thing in compose_split_scene(0, split, number)[0].objects)
        for split in ("train", "val")
        for number in (0, 1)
    ]
    assert len(set(boxes)) == 4
