from rose_d2.prepare.sources import select_archives


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
