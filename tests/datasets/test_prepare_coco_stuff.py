"""Two images of 8 x 10 pixels: sky in rows 0-3, grass in rows 4-6, row 7 unlabelled."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scripts import load_script

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_coco_stuff.py"
HEIGHT, WIDTH = 8, 10
PERSON, DOG, SKY, GRASS = 1, 18, 157, 124  # labels; the maps hold them minus 1
STEMS = ("000000000001", "000000000002")


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


def draw(rows, columns):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def encode(mask):
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode("ascii")}


# A person with a dog before it; further people behind, that nobody separated.
PERSON_MASK, DOG_MASK, CROWD_MASK = (
    draw((1, 7), (2, 6)),
    draw((4, 6), (4, 8)),
    draw((3, 6), (5, 10)),
)


def draw_label_map():
    label_map = np.full((HEIGHT, WIDTH), GRASS - 1, dtype=np.uint8)
    label_map[:4], label_map[7] = SKY - 1, 255
    label_map[CROWD_MASK] = label_map[PERSON_MASK] = PERSON - 1
    label_map[DOG_MASK] = DOG - 1
    label_map[0, 2:4] = PERSON - 1  # its hat, which the annotation cuts off
    return label_map


def list_annotations(image_id):
    rows = [(DOG, DOG_MASK, 0), (PERSON, PERSON_MASK, 0), (PERSON, CROWD_MASK, 1)]
    return [
        {
            "id": 10 * image_id + k,
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": encode(mask),
            "bbox": [0, 0, 1, 1],
            "iscrowd": iscrowd,
        }
        for k, (category_id, mask, iscrowd) in enumerate(rows)
    ]


@pytest.fixture
def root(tmp_path):
    coco = tmp_path / "coco"
    maps = coco / "stuffthingmaps" / "val2017"
    maps.mkdir(parents=True)
    (coco / "annotations").mkdir()
    images, annotations = [], []
    for image_id, stem in enumerate(STEMS, start=1):
        Image.fromarray(draw_label_map()).save(maps / f"{stem}.png")
        size = {"height": HEIGHT, "width": WIDTH}
        images.append({"id": image_id, "file_name": f"{stem}.jpg", **size})
        annotations += list_annotations(image_id)
    content = {"images": images, "annotations": annotations, "categories": []}
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return tmp_path


def run(script, root, *options):
    return script.main(["--root", str(root), "--splits", "val", "--num-workers", "1", *options])


def made_files(root):
    coco = root / "coco"
    return (
        coco / "annotations" / "cocostuff_panoptic_val2017.json",
        coco / "cocostuff_panoptic_val2017",
        coco / "cocostuff_sem_seg_val2017",
    )


def read_ids(path):
    return np.asarray(Image.open(path)).astype(int) @ np.array([1, 256, 65536])


def test_layers_of_the_joined_segments(script, root):
    assert run(script, root) == 0
    json_file, folder, _ = made_files(root)
    content = json.loads(json_file.read_text())
    annotation = content["annotations"][0]
    ids = read_ids(folder / annotation["file_name"])
    expected = np.zeros((HEIGHT, WIDTH), dtype=int)
    expected[:4], expected[4:7] = SKY, GRASS
    expected[0, 2:4] = 0  # a thing of nobody knows whom
    expected[CROWD_MASK], expected[PERSON_MASK], expected[DOG_MASK] = -PERSON, PERSON, DOG
    found = np.zeros_like(ids)
    for segment in annotation["segments_info"]:
        sign = -1 if segment["iscrowd"] else 1
        found[ids == segment["id"]] = sign * segment["category_id"]
        assert segment["area"] == (ids == segment["id"]).sum()
    assert np.array_equal(found, expected)
    assert len(annotation["segments_info"]) == 5
    assert [image["id"] for image in content["images"]] == [1, 2]


def test_instances_of_one_category_are_segments_of_their_own(script):
    labels = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    masks = [draw((0, 4), (0, 4)), draw((0, 4), (4, 8))]
    annotations = [{"segmentation": encode(mask), "category_id": 0, "iscrowd": 0} for mask in masks]
    ids, segments = script.join_segments(labels, annotations)
    assert [s["category_id"] for s in segments] == [PERSON, PERSON]
    for segment, mask in zip(segments, masks, strict=True):
        assert np.array_equal(ids == segment["id"], mask)


@pytest.mark.parametrize("reverse", [False, True])
def test_smaller_instances_lie_over_larger_ones_in_any_order(script, reverse):
    labels = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    masks = [draw((0, 8), (0, 8)), draw((2, 6), (2, 6)), draw((3, 4), (3, 9))]
    order = masks[::-1] if reverse else masks
    annotations = [{"segmentation": encode(m), "category_id": 5, "iscrowd": 0} for m in order]
    ids, _ = script.join_segments(labels, annotations)
    large, middle, small = (3, 2, 1) if reverse else (1, 2, 3)
    assert (ids[3, 3:9] == small).all()
    assert (ids[2, 2:6] == middle).all()
    assert (ids == large).sum() == 64 - 16 - 2
    assert ids[7, 9] == 0


def test_evaluated_labels_are_the_official_ones_made_contiguous(script, root):
    assert run(script, root) == 0
    labels = np.asarray(Image.open(made_files(root)[2] / f"{STEMS[1]}.png"))
    contiguous = {PERSON: 0, DOG: 16, SKY: 80 + SKY - 92, GRASS: 80 + GRASS - 92}
    label_map = draw_label_map()
    for label, class_id in contiguous.items():
        assert np.array_equal(labels == class_id, label_map == label - 1)
    assert np.array_equal(labels == 255, label_map == 255)


def test_categories_are_the_171_labels(script, root):
    assert run(script, root) == 0
    categories = json.loads(made_files(root)[0].read_text())["categories"]
    assert len(categories) == 171
    assert sum(category["isthing"] for category in categories) == 80
    wood = next(category for category in categories if category["id"] == 182)
    assert (wood["name"], wood["isthing"], len(wood["color"])) == ("wood", 0, 3)


def test_a_second_run_does_nothing(script, root):
    assert run(script, root) == 0
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    # Not even the sources are looked at.
    for path in (root / "coco" / "stuffthingmaps" / "val2017").iterdir():
        path.write_bytes(b"")
        before[path] = path.stat().st_mtime_ns
    assert run(script, root) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_overwrite_makes_all_again(script, root):
    assert run(script, root) == 0
    label_map = np.full((HEIGHT, WIDTH), SKY - 1, dtype=np.uint8)
    Image.fromarray(label_map).save(root / f"coco/stuffthingmaps/val2017/{STEMS[0]}.png")
    assert run(script, root, "--overwrite") == 0
    _, folder, labels = made_files(root)
    assert (np.asarray(Image.open(labels / f"{STEMS[0]}.png")) == 145).all()
    assert read_ids(folder / f"{STEMS[0]}.png")[7, 0] > 0


def test_a_failure_leaves_no_output_and_the_next_run_goes_on(script, root, capsys):
    bad_map = root / "coco" / "stuffthingmaps" / "val2017" / f"{STEMS[1]}.png"
    Image.new("L", (WIDTH, HEIGHT + 1)).save(bad_map)
    assert run(script, root) == 1
    error = capsys.readouterr().err
    assert str(bad_map) in error and "(9, 10)" in error and "(8, 10)" in error
    assert not any(path.exists() for path in made_files(root))
    first = root / "coco" / ".cocostuff_panoptic_val2017.partial" / f"{STEMS[0]}.png"
    finished = first.stat().st_mtime_ns
    Image.fromarray(draw_label_map()).save(bad_map)
    assert run(script, root) == 0
    json_file, folder, labels = made_files(root)
    assert (folder / f"{STEMS[0]}.png").stat().st_mtime_ns == finished
    assert len(list(folder.iterdir())) == len(list(labels.iterdir())) == 2
    assert not list((root / "coco").glob(".*"))


def test_only_missing_labels_are_made(script, root):
    assert run(script, root) == 0
    json_file, _, labels = made_files(root)
    written = json_file.stat().st_mtime_ns
    for path in labels.iterdir():
        path.unlink()
    labels.rmdir()
    assert run(script, root) == 0
    assert len(list(labels.iterdir())) == 2
    assert json_file.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"stuffthingmaps/val2017/{STEMS[0]}.png", "unpack stuffthingmaps_trainval2017.zip again"),
        ("annotations/instances_val2017.json", "see COCO-Stuff in datasets/README.md"),
    ],
)
def test_missing_sources_are_one_sentence(script, root, capsys, path, message):
    (root / "coco" / path).unlink()
    assert run(script, root) == 1
    error = capsys.readouterr().err
    assert path in error and message in error


def test_values_that_are_no_labels_are_named(script, root, capsys):
    path = root / "coco" / "stuffthingmaps" / "val2017" / f"{STEMS[0]}.png"
    label_map = draw_label_map()
    label_map[0, 0] = 11  # street sign, which has no mask anywhere
    Image.fromarray(label_map).save(path)
    assert run(script, root) == 1
    assert "[11]" in capsys.readouterr().err


def test_broken_annotations_are_skipped_unless_strict(script, root, capsys):
    path = root / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"].append(content["annotations"][0] | {"id": 99, "segmentation": []})
    path.write_text(json.dumps(content))
    assert run(script, root, "--strict") == 1
    assert "annotation 99 of image 1" in capsys.readouterr().err
    assert run(script, root) == 0
