import json
import pickle
import pickletools

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from pycocotools import mask as mask_util

from rose_d2.data.datasets.clipart import ALL_NAMES
from rose_d2.data.datasets.reasonseg import load_reasonseg
from rose_d2.data.datasets.refcoco import REFER_SPLITS
from rose_d2.data.datasets.refer_files import load_plain_pickle
from rose_d2.evaluation.ground_truth import ReferringTarget
from rose_d2.structures.mask_codec import segmentation_to_rle
from rose_d2.synthetic.miniature_coco import miniature_scene
from rose_d2.synthetic.miniature_refer import (
    ABSENT_NAME,
    REASONSEG_SPLIT_IMAGES,
    SPLIT_IMAGES,
    coco_category,
    dump_as_python2,
    write_reasonseg,
    write_refer,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_refer(root, with_images=True)
    return root


def _instances(root, dataset):
    return json.loads((root / dataset / "instances.json").read_text(encoding="utf-8"))


def _references(root, dataset, split_by):
    return load_plain_pickle(root / dataset / f"refs({split_by}).p")


def _annotations(root, dataset):
    return {a["id"]: a for a in _instances(root, dataset)["annotations"]}


def test_it_is_deterministic(root, tmp_path):
    write_refer(tmp_path, with_images=True)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert len(files) == 5 + 8 + 6 + 6
    for file in files:
        assert (root / file).read_bytes() == (tmp_path / file).read_bytes()


def test_images_lie_where_the_annotations_say(root):
    for dataset, folder in (("refcoco", "coco/train2014"), ("refclef", "saiapr_tc-12")):
        images = _instances(root, dataset)["images"]
        assert len(images) == 6
        for image in images:
            with Image.open(root / folder / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
    assert (root / "coco/train2014/COCO_train2014_000000000101.jpg").is_file()
    assert (root / "saiapr_tc-12/30/images/30106.jpg").is_file()


def test_coco_images_are_only_written_when_asked_for(tmp_path):
    write_refer(tmp_path)
    assert not (tmp_path / "coco").exists()
    assert (tmp_path / "saiapr_tc-12/30/images/30101.jpg").is_file()


@pytest.mark.parametrize("pair", SPLIT_IMAGES, ids="_".join)
def test_splits_are_the_official_ones(root, pair):
    references = _references(root, *pair)
    labels = {reference["split"] for reference in references}
    official = set(REFER_SPLITS[pair])
    if pair == ("refclef", "unc"):
        assert labels == (official - {"testC"}) | {"testBC"}
    else:
        assert labels == official
    for label, image_ids in SPLIT_IMAGES[pair].items():
        assert {r["image_id"] for r in references if r["split"] == label} == set(image_ids)
    for key in ("ref_id", "ann_id"):
        assert len({reference[key] for reference in references}) == len(references)
    sent_ids = [s["sent_id"] for reference in references for s in reference["sentences"]]
    assert len(set(sent_ids)) == len(sent_ids)
    assert sent_ids == [k for reference in references for k in reference["sent_ids"]]


def test_google_parts_objects_not_images(root):
    references = _references(root, "refcoco", "google")
    splits = {r["ann_id"]: r["split"] for r in references if r["image_id"] == 102}
    assert sorted(splits.values()) == ["test", "train", "val"]


@pytest.mark.parametrize("pair", SPLIT_IMAGES, ids="_".join)
def test_references_have_the_fields_and_oddities_of_the_toolkit(root, pair):
    annotations = _annotations(root, pair[0])
    names = {i["id"]: i["file_name"] for i in _instances(root, pair[0])["images"]}
    for reference in _references(root, *pair):
        annotation = annotations[reference["ann_id"]]
        assert annotation["image_id"] == reference["image_id"]
        assert annotation["category_id"] == reference["category_id"]
        assert annotation["iscrowd"] == 0
        # No file has this name: it ends in the annotation's number.
        stem = names[reference["image_id"]].split("/")[-1].removesuffix(".jpg")
        assert reference["file_name"] == f"{stem}_{reference['ann_id']}.jpg"
        assert 1 <= len(reference["sentences"]) <= 3
        for sentence in reference["sentences"]:
            assert sentence["tokens"] == sentence["sent"].split()
            assert sentence["raw"].lower() == sentence["sent"] + "."


def test_refcoco_plus_says_nothing_about_places(root):
    words = {
        word
        for reference in _references(root, "refcoco+", "unc")
        for sentence in reference["sentences"]
        for word in sentence["tokens"]
    }
    assert not words & {"left", "right", "top", "bottom", "above", "below", "leftmost"}


def test_masks_of_the_coco_family_are_polygons_close_to_the_scene(root):
    annotations = _annotations(root, "refcoco")
    scene = miniature_scene(106)
    height, width = scene.stuff.shape
    for index, thing in enumerate(scene.objects):
        annotation = annotations[106 * 100 + index + 1]
        assert isinstance(annotation["segmentation"][0][0], float)
        drawn = mask_util.decode(segmentation_to_rle(annotation["segmentation"], height, width))
        # They run through the centres of the outermost pixels, and the things are small.
        union = (drawn.astype(bool) | thing.mask).sum()
        assert (drawn.astype(bool) & thing.mask).sum() / union > 0.7


def test_a_crowd_and_things_that_nobody_refers_to_are_annotated(root):
    annotations = _annotations(root, "refcoco")
    (crowd,) = [a for a in annotations.values() if a["iscrowd"]]
    scene = miniature_scene(105)
    assert isinstance(crowd["segmentation"]["counts"], list)
    code = segmentation_to_rle(crowd["segmentation"], *scene.stuff.shape)
    assert np.array_equal(mask_util.decode(code).astype(bool), scene.objects[1].mask)
    referred = {r["ann_id"] for r in _references(root, "refcoco", "unc")}
    assert crowd["id"] in set(annotations) - referred


def test_refclef_masks_are_overlapping_codes_that_make_the_object(root):
    annotations = _annotations(root, "refclef")
    scene = miniature_scene(30104)
    for index, thing in enumerate(scene.objects):
        annotation = annotations[30104 * 100 + index + 1]
        assert annotation["category_id"] == -1
        assert [type(code["counts"]) for code in annotation["segmentation"]] == [str, str]
        parts = mask_util.decode(annotation["segmentation"])  # (H, W, 2)
        assert parts.sum(axis=2).max() == 2
        assert np.array_equal(parts.any(axis=2), thing.mask)


def test_refclef_pickles_are_those_of_python_2(root):
    content = (root / "refclef" / "refs(unc).p").read_bytes()
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    assert "SHORT_BINSTRING" in opcodes
    assert not {name for name in opcodes if "UNICODE" in name}
    assert b"voil\xe0" in content
    # Neither ASCII nor UTF-8: readers that do not know this stop here.
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(content)
    first = _references(root, "refclef", "unc")[0]
    assert first["sentences"][0]["sent"].endswith(", voil\xe0")


def test_category_ids_are_cocos():
    names = {category["id"]: category["name"] for category in COCO_CATEGORIES}
    found = [coco_category(n) for n in ("car", "dog", "rooster", "ambulance", "hamburger")]
    assert [names[i] for i in found] == ["car", "dog", "bird", "truck", "sandwich"]
    # Stuff of COCO panoptic and what COCO does not have.
    assert coco_category("tree") is coco_category("robot") is coco_category("road") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_refer(root)
    return root / "grefcoco"


@pytest.fixture(scope="module")
def references(folder):
    return json.loads((folder / "grefs(unc).json").read_text())


def test_every_image_has_a_reference_to_nothing(references):
    nothing = [r for r in references if r["no_target"]]
    assert {r["image_id"] for r in nothing} == {r["image_id"] for r in references}
    assert all(r["ann_id"] == r["category_id"] == [-1] for r in nothing)
    assert not any(ABSENT_NAME in name for name in ALL_NAMES)


def test_references_of_refcoco_are_kept(folder, references):
    originals = load_plain_pickle(folder.parent / "refcoco" / "refs(unc).p")
    for original, generalised in zip(originals, references, strict=False):
        assert generalised["ann_id"] == [original["ann_id"]]
        assert generalised["split"] == original["split"]
        texts = [sentence["sent"] for sentence in original["sentences"]]
        assert [sentence["sent"] for sentence in generalised["sentences"]] == texts


def test_several_objects_may_include_a_crowd(folder, references):
    annotations = json.loads((folder / "instances.json").read_text())["annotations"]
    crowds = {a["id"] for a in annotations if a["iscrowd"]}
    several = [r for r in references if len(r["ann_id"]) > 1]
    assert {len(r["ann_id"]) for r in several} == {2, 3}
    assert any(crowds & set(r["ann_id"]) for r in several)
    assert all(len(r["ann_id"]) == len(r["category_id"]) for r in references)


def test_ids_are_unique(references):
    assert [r["ref_id"] for r in references] == list(range(len(references)))
    sent_ids = [s["sent_id"] for r in references for s in r["sentences"]]
    assert sent_ids == list(range(len(sent_ids)))
    assert sent_ids == [k for r in references for k in r["sent_ids"]]


def test_it_writes_what_python_2_wrote():
    # cPickle.dumps(["caf\xe9", -2], 2) of Python 2, but for its memo.
    assert dump_as_python2(["caf\xe9", -2]) == b"\x80\x02](U\x04caf\xe9J\xfe\xff\xff\xffe."


@pytest.mark.parametrize(
    "content",
    [[], {}, "", "\xe0" * 255, "\xe0" * 256, {"a": [1, {"b": []}], "c": 2**31 - 1}, [-1, "x"]],
)
def test_what_it_writes_can_be_read(tmp_path, content):
    path = tmp_path / "refs.p"
    path.write_bytes(dump_as_python2(content))
    assert load_plain_pickle(path) == content
    assert pickle.loads(dump_as_python2(content), encoding="latin-1") == content


def test_every_split_has_its_images_and_oddities(tmp_path):
    write_reasonseg(tmp_path)
    for split, image_ids in REASONSEG_SPLIT_IMAGES.items():
        folder = tmp_path / "ReasonSeg" / split
        assert {path.name for path in folder.iterdir()} == {
            f"{image_id}.{ending}" for image_id in image_ids for ending in ("jpg", "json")
        }
        for image_id in image_ids:
            annotation = json.loads((folder / f"{image_id}.json").read_bytes().decode("cp1252"))
            assert len(annotation["text"]) == 2
            assert {s["label"] for s in annotation["shapes"]} == {"target", "ignore", "flag"}


def test_the_loader_reads_back_the_object_of_the_scene(tmp_path):
    write_reasonseg(tmp_path)
    records = load_reasonseg(tmp_path / "ReasonSeg" / "val", all_texts=False)
    for image_id, record in zip(REASONSEG_SPLIT_IMAGES["val"], records, strict=True):
        thing = miniature_scene(image_id).objects[0]
        target = ReferringTarget(record)
        assert thing.name in record["sentence"]
        overlap = np.logical_and(target.mask, thing.mask).sum()
        assert overlap / np.logical_or(target.mask, thing.mask).sum() > 0.9
        assert target.ignore.any()
        assert not (target.mask & target.ignore).any()
