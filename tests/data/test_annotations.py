import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from rose_d2.data.annotations import (
    decode_annotations,
    decode_label_map,
    decode_panoptic,
    read_labels,
)
from rose_d2.data.image_io import ImageReadError
from rose_d2.structures.mask_codec import segmentation_to_rle

SIZE = 20  # rows stay, columns are halved


def _box(top, bottom, left, right):
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_panoptic_gives_things_then_one_region_per_stuff_category(scene):
    record = scene["panoptic"]
    segments = [*record["segments_info"]]
    # A second piece of sky, painted over the void rows by nobody: same region as the first.
    segments.append({"id": 999, "category_id": 3, "isthing": False, "iscrowd": 0})
    regions = decode_panoptic(record["pan_seg_file_name"], segments, 20, 40, SIZE)
    assert regions.classes.tolist() == [0, 1, 3, 4]
    assert regions.is_stuff.tolist() == [False, False, True, True]
    assert np.array_equal(regions.masks[0], _box(2, 8, 1, 4))
    assert np.array_equal(regions.masks[1], _box(10, 16, 15, 18))
    assert np.array_equal(regions.masks[2], _box(0, 10, 0, 20) & ~regions.masks[0])


def test_two_segments_of_one_stuff_category_are_merged(tmp_path):
    ids = np.zeros((4, 4, 3), dtype=np.uint8)
    ids[0, :, 0], ids[3, :, 0] = 1, 2
    Image.fromarray(ids).save(tmp_path / "a.png")
    segments = [{"id": i, "category_id": 5, "isthing": False, "iscrowd": 0} for i in (1, 2)]
    regions = decode_panoptic(str(tmp_path / "a.png"), segments, 4, 4, 4)
    assert len(regions) == 1
    assert regions.masks[0].any(axis=1).tolist() == [True, False, False, True]


def test_void_and_crowd_pixels_are_ignored(scene):
    record = scene["panoptic"]
    regions = decode_panoptic(record["pan_seg_file_name"], record["segments_info"], 20, 40, SIZE)
    assert np.array_equal(regions.ignore, _box(18, 20, 0, 20) | _box(11, 14, 10, 13))


def test_objects_keep_their_positions_and_crowds_are_ignored(scene):
    regions = decode_annotations(scene["instance"]["annotations"], 20, 40, SIZE)
    assert regions.classes.tolist() == [1, 0, 0]
    assert np.array_equal(regions.masks[0], _box(10, 16, 15, 18))
    assert not regions.masks[1].any()
    assert np.array_equal(regions.masks[2], _box(2, 8, 1, 4))
    assert np.array_equal(regions.ignore, _box(11, 14, 10, 13))


def test_a_missing_category_becomes_minus_one():
    annotation = {"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "category_id": None}
    assert decode_annotations([annotation], 8, 8, 8).classes.tolist() == [-1]


def test_label_map_gives_one_region_per_class(scene):
    regions = decode_label_map(
        scene["semantic"]["sem_seg_file_name"],
        20,
        40,
        SIZE,
        ignore_label=255,
        stuff_ids={3, 4},
        num_classes=5,
    )
    assert regions.classes.tolist() == [0, 1, 3, 4]
    assert regions.is_stuff.tolist() == [False, False, True, True]
    assert np.array_equal(regions.masks[0], _box(2, 8, 1, 4))
    assert np.array_equal(regions.ignore, _box(18, 20, 0, 20) | _box(11, 14, 10, 13))


def test_flipping_mirrors_masks_and_ignored_pixels(scene):
    regions = decode_annotations(scene["instance"]["annotations"], 20, 40, SIZE).flipped()
    assert np.array_equal(regions.masks[2], _box(2, 8, 16, 19))
    assert np.array_equal(regions.ignore, _box(11, 14, 7, 10))


def test_every_form_of_segmentation_decodes_to_the_same_mask():
    mask = np.zeros((6, 5), dtype=np.uint8)
    mask[1:4, 2:5] = 1
    compressed = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": [6, 5], "counts": compressed["counts"].decode()}
    uncompressed = {"size": [6, 5], "counts": [13, 3, 3, 3, 3, 3, 2]}
    polygon = [[2, 1, 5, 1, 5, 4, 2, 4]]
    halves = [[[2, 1, 4, 1, 4, 4, 2, 4]], [[3, 1, 5, 1, 5, 4, 3, 4]]]
    overlapping_rles = [segmentation_to_rle(half, 6, 5) for half in halves]
    for segmentation in (compressed, text, uncompressed, polygon, overlapping_rles):
        decoded = coco_mask.decode(segmentation_to_rle(segmentation, 6, 5))
        assert np.array_equal(decoded, mask)


@pytest.mark.parametrize("segmentation", [None, [], [[1, 1, 2, 2]]])
def test_an_empty_segmentation_is_no_mask(segmentation):
    assert segmentation_to_rle(segmentation, 6, 5) is None


def test_annotations_of_another_image_are_refused(scene):
    with pytest.raises(ValueError, match="belongs to other images"):
        segmentation_to_rle({"size": [5, 6], "counts": [30]}, 6, 5)
    record = scene["panoptic"]
    with pytest.raises(ValueError, match=r"panoptic\.png.*\(20, 40\).*\(40, 20\)"):
        decode_panoptic(record["pan_seg_file_name"], record["segments_info"], 40, 20, SIZE)


def _label_image(tmp_path, values, name="labels.png", mode=None):
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(tmp_path / name)
    return str(tmp_path / name)


def _read(path, size=(2, 2), **options):
    return read_labels(path, size, **{"ignore_label": 255, "num_classes": 3, **options}).tolist()


@pytest.mark.parametrize("mode", [None, "P", "RGB", "LA"])
def test_labels_are_read_whatever_the_mode(tmp_path, mode):
    grey = Image.fromarray(np.array([[0, 1], [2, 255]], dtype=np.uint8))
    if mode == "P":
        grey.putpalette([7, 7, 7] * 256)
    elif mode:
        grey = grey.convert(mode)
    grey.save(tmp_path / "labels.png")
    assert _read(str(tmp_path / "labels.png")) == [[0, 1], [2, 255]]


def test_sixteen_bit_labels_have_as_many_classes(tmp_path):
    values = np.array([[0, 300], [255, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "labels.png")
    labels = _read(str(tmp_path / "labels.png"), ignore_label=65535, num_classes=400)
    assert labels == values.tolist()


def test_colours_are_labels_where_the_classes_have_colours(tmp_path):
    colours = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    drawn = [[colours[2], colours[0]], [[224, 224, 192], colours[1]]]
    path = _label_image(tmp_path, drawn)
    assert _read(path, colours=colours) == [[2, 0], [255, 1]]
    with pytest.raises(ImageReadError, match=r"labels\.png.* 3 channels"):
        _read(path)
    with pytest.raises(ImageReadError, match=r"labels\.png.*\[\[0, 128, 0\]\], which no class"):
        _read(path, colours=colours[:2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, 1], [3, 7]], r"labels\.png.* labels \[3, 7\]; allowed are 0 to 2"),
        ([[0, 1, 1], [2, 2, 2]], r"labels\.png.*\(2, 3\) but its image \(2, 2\)"),
    ],
)
def test_a_label_image_that_does_not_fit_is_named(tmp_path, values, message):
    with pytest.raises(ImageReadError, match=message):
        _read(_label_image(tmp_path, values))


def test_a_grey_image_is_no_panoptic_annotation(tmp_path):
    path = _label_image(tmp_path, [[0, 1], [2, 2]])
    with pytest.raises(ImageReadError, match="one channel"):
        decode_panoptic(path, [], 2, 2, 2)


def test_a_damaged_label_image_is_named(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImageReadError, match=r"broken\.png"):
        decode_panoptic(str(path), [], 4, 4, 4)
