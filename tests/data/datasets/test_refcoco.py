import builtins
import io
import os
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.refcoco import REFER_SPLITS, find_image_root, register_refer
from rose_d2.data.datasets.registration import registered_entries, strict_annotations
from rose_d2.synthetic.miniature_refer import write_refer

NAMES = [
    *(f"{name}_unc_{s}" for name in ("refcoco", "refcoco+") for s in ("train", "val", "testA")),
    *("refcoco_unc_testB", "refcoco+_unc_testB"),
    *(f"{name}_{s}" for name in ("refcoco_google", "refcocog_umd") for s in ("train", "val")),
    *("refcoco_google_test", "refcocog_umd_test", "refcocog_google_train", "refcocog_google_val"),
    *(f"refclef_unc_{s}" for s in ("train", "val", "testA", "testB", "testC")),
    *(f"refclef_berkeley_{s}" for s in ("train", "val", "test")),
    *(f"grefcoco_unc_{s}" for s in ("train", "val", "testA", "testB")),
]


@pytest.fixture(autouse=True)
def _restore_registrations():
    yield
    register_refer(os.environ.get("DETECTRON2_DATASETS", "datasets"))


@pytest.fixture(scope="module")
def complete_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_refer(root, with_images=True)
    return root


def test_every_split_is_registered_and_nothing_is_read(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"opened {arguments}")

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", refuse)
    register_refer(tmp_path)
    assert len(NAMES) == 28 == sum(map(len, REFER_SPLITS.values()))
    assert set(NAMES) <= set(DatasetCatalog.list())


def test_metadata(tmp_path):
    register_refer(tmp_path)
    coco = MetadataCatalog.get("refcoco+_unc_testA")
    assert (coco.task, coco.evaluator_type, coco.image_source) == ("referring", "refcoco", "coco")
    assert coco.refs_file == str(tmp_path / "refcoco+" / "refs(unc).p")
    assert (coco.split, coco.split_by) == ("testA", "unc")
    assert len(coco.thing_classes) == 80 == len(coco.thing_colors)
    ids = coco.thing_dataset_id_to_contiguous_id
    assert [coco.thing_classes[ids[i]] for i in (1, 18, 90)] == ["person", "dog", "toothbrush"]
    clef = MetadataCatalog.get("refclef_unc_testC")
    assert (clef.task, clef.evaluator_type, clef.image_source) == ("referring", "refcoco", "saiapr")
    assert not hasattr(clef, "thing_classes")


def test_published_sizes(tmp_path):
    register_refer(tmp_path)
    entries = registered_entries()
    sizes = {name: (entries[name].num_images, entries[name].num_items) for name in NAMES}
    assert sizes["refcoco_unc_val"] == (1500, 10834)
    assert sizes["refcoco_google_test"] == (4527, None)
    assert sizes["refclef_berkeley_train"] == (None, None)
    # The sums of the splits are the published totals of the whole datasets.
    sums = {
        key: [sum(size[column] for size in splits.values()) for column in (0, 2)]
        for key, splits in REFER_SPLITS.items()
        if key[1] in ("unc", "umd") and key[0] not in ("refclef", "grefcoco")
    }
    assert sums == {
        ("refcoco", "unc"): [50000, 142210],
        ("refcoco+", "unc"): [49856, 141564],
        ("refcocog", "umd"): [49822, 95010],
    }
    unc_images = [size.images for size in REFER_SPLITS["refcoco", "unc"].values()]
    assert sum(unc_images) == 19994


@pytest.mark.parametrize("name", NAMES)
def test_every_split_loads_strictly(complete_root, name):
    register_refer(complete_root)
    with strict_annotations():
        records = DatasetCatalog.get(name)
    assert {r["dataset_name"] for r in records} == {name}
    assert {r["task"] for r in records} == {"referring"}
    classes = {a["category_id"] for r in records for a in r["annotations"]}
    if name.startswith("refclef"):
        assert classes == {-1}
        assert records[0]["file_name"].startswith(f"{complete_root}/saiapr_tc-12/30/images/301")
    else:
        assert classes <= set(range(80))
        assert records[0]["file_name"].startswith(f"{complete_root}/coco/train2014/COCO_train2014_")


def test_the_generalised_references_have_any_number_of_targets(complete_root):
    register_refer(complete_root)
    metadata = MetadataCatalog.get("grefcoco_unc_val")
    assert metadata.refs_file == str(complete_root / "grefcoco" / "grefs(unc).json")
    records = DatasetCatalog.get("grefcoco_unc_train")
    assert {len(record["target_indices"]) for record in records} == {0, 1, 2, 3}
    missing = registered_entries()["grefcoco_unc_val"].how_to_get
    assert "github.com/henghuiding/gRefCOCO" in missing


def test_a_sentence_about_nothing_trains_to_say_so(complete_root, tiny_cfg):
    register_refer(complete_root)
    records = DatasetCatalog.get("grefcoco_unc_train")
    mapper = RoseDatasetMapper(tiny_cfg, is_train=True)
    sample = mapper(next(r for r in records if not r["target_indices"]))
    assert len(sample["instances"]) == 0
    assert sample["conversation"].response == "There is nothing to segment in this image."
    assert len(sample["negative_points"]) == 2


@pytest.mark.parametrize("name", ["refcoco_unc_train", "refclef_unc_train"])
def test_training_samples_come_out_of_the_mapper(complete_root, tiny_cfg, name):
    register_refer(complete_root)
    mapper = RoseDatasetMapper(tiny_cfg, is_train=True)
    sample = mapper(DatasetCatalog.get(name)[0])
    (category,) = sample["instances"].gt_category_names
    assert category == ("" if name.startswith("refclef") else "sandwich")
    # A target without a name gives no text to learn.
    assert (sample["conversation"].response is None) == name.startswith("refclef")


COCO_PLACES = ["coco/train2014", "images/train2014", "images/mscoco/images/train2014"]


def test_images_are_searched_in_a_fixed_order(tmp_path):
    picture = "COCO_train2014_000000000101.jpg"
    assert find_image_root(tmp_path, "refcoco") is None
    for place in ["coco/train2017", *reversed(COCO_PLACES)]:
        folder = tmp_path / place
        folder.mkdir(parents=True)
        # An empty folder does not count.
        assert (find_image_root(tmp_path, "refcoco") or ("",))[0] != place
        (folder / picture).touch()
        assert find_image_root(tmp_path, "refcoco").folder == place
    assert find_image_root(tmp_path, "refclef") is None
    for place in ["images/saiapr_tc-12", "saiapr_tc-12"]:
        (tmp_path / place / "30").mkdir(parents=True)
        assert find_image_root(tmp_path, "refclef").folder == place


def test_without_train2014_the_images_of_2017_serve(tmp_path):
    write_refer(tmp_path)
    register_refer(tmp_path)
    entry = registered_entries()["refcocog_umd_val"]
    assert entry.missing_files() == [tmp_path / "coco" / "train2014"]
    # The images arrive after registration.
    folder = tmp_path / "coco" / "train2017"
    folder.mkdir(parents=True)
    (folder / "000000000102.jpg").touch()
    assert entry.missing_files() == []
    names = {r["file_name"] for r in DatasetCatalog.get("refcocog_umd_val")}
    assert names == {str(folder / "000000000102.jpg")}


def test_missing_files_are_named_with_what_to_do(tmp_path, complete_root):
    register_refer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"refs\(unc\).p is missing.*download.py refcoco\+"):
        DatasetCatalog.get("refcoco+_unc_val")
    shutil.copytree(complete_root / "refclef", tmp_path / "refclef")
    with pytest.raises(FileNotFoundError, match="saiapr_tc-12 is missing.*prepare_refcoco.py"):
        DatasetCatalog.get("refclef_unc_val")


def test_home_folders_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    register_refer("~/data")
    assert registered_entries()["refcoco_unc_val"].files[0].is_relative_to(tmp_path / "data")
