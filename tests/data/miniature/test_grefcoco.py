import json

import pytest

from rose_d2.data.datasets.clipart import ALL_NAMES
from rose_d2.data.datasets.refer_files import load_plain_pickle
from rose_d2.synthetic.miniature_refer import ABSENT_NAME, write_refer


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
