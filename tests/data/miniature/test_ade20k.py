"""The official layout, and every oddity of the real data that it imitates."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rose_d2.data.datasets.ade20k import CLASS_NAMES, STUFF_IDS, THING_IDS, Ade20kPaths
from rose_d2.data.datasets.clipart import ALL_NAMES, STUFF_NAMES, THING_BY_NAME, THING_NAMES
from rose_d2.data.image_io import read_image
from rose_d2.synthetic.miniature_coco import miniature_scene
from rose_d2.synthetic.miniature_dense import (
    ADE20K_SCENE_IDS,
    UNLABELLED_ROWS,
    ade20k_class,
    write_ade20k,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    write_ade20k(folder)
    return folder


def read(folder, stem):
    return np.asarray(Image.open(folder / f"{stem}.png"))


def pictures(root, split):
    """Scene, labels and instances of each picture of a split."""
    paths = Ade20kPaths(root, split)
    for number, scene_id in enumerate(ADE20K_SCENE_IDS[split], start=1):
        stem = f"ADE_{split}_{number:08d}"
        scene = miniature_scene(scene_id)
        yield scene, read(paths.label_root, stem), read(paths.instance_label_root, stem)


def test_only_what_the_downloads_hold_is_written(root):
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    assert len(files) == 3 * (6 + 3)
    assert files[0] == "ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    assert files[-1] == "ADEChallengeData2016/images/validation/ADE_val_00000003.jpg"
    assert {Path(name).parts[1] for name in files} == {
        "images",
        "annotations",
        "annotations_instance",
    }


def test_one_grey_and_one_cmyk_jpeg(root):
    folder = Ade20kPaths(root, "train").image_root
    modes = [Image.open(path).mode for path in sorted(folder.iterdir())]
    assert modes == ["RGB", "L", "CMYK", "RGB", "RGB", "RGB"]
    # CMYK survives the way back: red things stay red.
    picture = read_image(folder / "ADE_train_00000003.jpg").astype(int)
    scene = miniature_scene(ADE20K_SCENE_IDS["train"][2]).image.astype(int)
    assert np.abs(picture - scene).mean() < 6


@pytest.mark.parametrize("split", ADE20K_SCENE_IDS)
def test_labels_count_from_one_and_leave_gaps(root, split):
    for scene, labels, _ in pictures(root, split):
        assert labels.dtype == np.uint8 and labels.shape == scene.stuff.shape
        assert not labels[-UNLABELLED_ROWS:].any()
        snow = scene.stuff == STUFF_NAMES.index("snow")
        for thing in scene.objects:
            snow &= ~thing.mask
        assert not labels[snow].any()


@pytest.mark.parametrize("split", ADE20K_SCENE_IDS)
def test_instances_are_numbered_and_have_the_class_of_their_label(root, split):
    for number, (scene, labels, instances) in enumerate(pictures(root, split)):
        names = [thing.object_name for thing in scene.objects]
        things = [name for name in names if ade20k_class(name) in THING_IDS]
        if split == "train" and number == 0:
            things = things[1:]
        present = np.unique(instances[..., 1]).tolist()
        assert present == list(range(len(things) + 1))
        for instance, name in enumerate(things, start=1):
            mask = instances[..., 1] == instance
            category = np.unique(instances[..., 0][mask]).tolist()
            assert [THING_IDS[k - 1] for k in category] == [ade20k_class(name)]
            inside = labels[mask] == ade20k_class(name) + 1
            # All but one column, which the other annotator gave to what is behind.
            assert 0.7 < inside.mean() < 1


def test_the_first_training_picture_has_a_thing_without_an_instance(root):
    scene, labels, instances = next(pictures(root, "train"))
    first = next(t for t in scene.objects if ade20k_class(t.object_name) in THING_IDS)
    assert not instances[first.mask].any()
    assert (labels[first.mask] == ade20k_class(first.object_name) + 1).mean() > 0.7


def test_things_that_are_stuff_in_ade20k_have_no_instance(root):
    castles = [
        (instances[thing.mask], labels[thing.mask])
        for split in ADE20K_SCENE_IDS
        for scene, labels, instances in pictures(root, split)
        for thing in scene.objects
        if thing.object_name in ("castle", "tree")
    ]
    assert len(castles) >= 3
    assert not any(instances.any() for instances, _ in castles)


def test_every_name_of_the_scenes_has_a_class_but_snow():
    for name in ALL_NAMES:
        object_name = THING_BY_NAME[name].object_name if name in THING_NAMES else name
        class_id = ade20k_class(object_name)
        assert (class_id is None) == (name == "snow")
        if name in STUFF_NAMES and name != "snow":
            assert class_id in STUFF_IDS and CLASS_NAMES[class_id] == name
    assert CLASS_NAMES[ade20k_class("dog")] == "animal"


def test_writing_again_gives_the_same_files(root, tmp_path):
    write_ade20k(tmp_path)
    for path in root.rglob("*.*"):
        assert (tmp_path / path.relative_to(root)).read_bytes() == path.read_bytes()
