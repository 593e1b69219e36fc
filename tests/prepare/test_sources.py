import re
from pathlib import PurePosixPath

import pytest

from rose_d2.prepare.download import RemoteFile
from rose_d2.prepare.sources import ARCHIVES, Archive, families, select_archives

EACH = pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.key)


def test_present_means_everything_is_there_and_not_empty(tmp_path):
    (archive,) = select_archives(["coco_panoptic"])
    for path in archive.provides:
        assert not archive.is_present(tmp_path)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".json"):
            (tmp_path / path).write_text("{}")
        else:
            (tmp_path / path).mkdir()
            assert not archive.is_present(tmp_path)
            (tmp_path / path / "1.png").write_text("")
    assert archive.is_present(tmp_path)


def test_train2017_makes_train2014_unnecessary(tmp_path):
    (archive,) = select_archives(["coco_train2014"])
    assert not archive.is_replaced(tmp_path)
    assert archive.is_replaced(tmp_path, coming=["coco/train2017"])
    (tmp_path / "coco/train2017").mkdir(parents=True)
    assert not archive.is_replaced(tmp_path)
    (tmp_path / "coco/train2017/1.jpg").write_text("")
    assert archive.is_replaced(tmp_path)


def keys(archives):
    return [archive.key for archive in archives]


@EACH
def test_an_entry_is_well_formed(archive):
    checksum = archive.remote.checksum
    assert checksum is None or re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", checksum)
    assert all(re.match("https?://", url) for url in archive.remote.urls)
    assert all(url.endswith(f"/{archive.file_name}") for url in archive.remote.urls)
    assert archive.licence.endswith(".")
    assert archive.remote.urls or archive.by_hand
    for path in archive.provides:
        assert PurePosixPath(path).is_relative_to(archive.folder)
    archive.by_hand.format(root="/data", downloads="/data/downloads", file=archive.file_name)


def test_archives_are_read_whole():
    assert len(ARCHIVES) == 14
    (scenes, panoptic) = select_archives(["ade20k_scenes", "coco_panoptic"])
    assert (scenes.size, scenes.remote.size, scenes.folder) == (967_000_000, None, ".")
    assert panoptic == Archive(
        key="coco_panoptic",
        families=("coco",),
        file_name="panoptic_annotations_trainval2017.zip",
        remote=RemoteFile(
            tuple(
                f"{host}/panoptic_annotations_trainval2017.zip"
                for host in (
                    "http://images.cocodataset.org/annotations",
                    "https://s3.amazonaws.com/images.cocodataset.org/annotations",
                    "https://s3.amazonaws.com/fast-ai-coco",
                )
            ),
            860_725_834,
            "sha256:c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
        ),
        provides=(
            "coco/annotations/panoptic_train2017.json",
            "coco/annotations/panoptic_val2017.json",
            "coco/panoptic_train2017",
            "coco/panoptic_val2017",
        ),
        licence="Annotations CC BY 4.0; the images belong to their Flickr owners.",
        folder="coco",
        inner={f"annotations/panoptic_{split}2017.zip": "." for split in ("train", "val")},
    )
    (referring,) = select_archives(["refcoco+_annotations"])
    assert "issues/14) and put it at {downloads}/{file}." in referring.by_hand


def test_names_are_unique():
    names = keys(ARCHIVES)
    assert len(set(names)) == len(names)
    files = [archive.file_name for archive in ARCHIVES]
    assert len(set(files)) == len(files)
    checksums = [archive.remote.checksum for archive in ARCHIVES if archive.remote.checksum]
    assert len(set(checksums)) == len(checksums)
    # A name that is both means the same.
    for name in set(names) & set(families()):
        assert keys(select_archives([name])) == [name]


def test_families_select_their_archives():
    assert families() == [
        "ade20k",
        "coco",
        "refcoco",
        "refcoco+",
        "refcocog",
        "refclef",
        "mapillary",
    ]
    assert keys(select_archives(["refcoco", "coco_val2017"])) == [
        "coco_val2017",
        "coco_train2014",
        "refcoco_annotations",
    ]
    assert select_archives(["all"]) == list(ARCHIVES)


def test_an_unknown_name_is_answered_with_the_known():
    with pytest.raises(ValueError, match="Unknown dataset 'cocco'; there are ade20k, coco, "):
        select_archives(["coco", "cocco"])
