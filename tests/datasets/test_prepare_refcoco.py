import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from scripts import load_script

from rose_d2.synthetic.miniature_refer import write_refer

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_refcoco.py"


@pytest.fixture(scope="module")
def script():
    module = load_script(SCRIPT)
    yield module
    del sys.modules["prepare_refcoco"]


@pytest.fixture
def run(script, tmp_path, capsys):
    """Runs the script on a folder; returns exit status, standard output and standard error."""

    def run(*arguments, root=tmp_path):
        command = ["--root", str(root), "--num-workers", "1", *arguments]
        status = script.run_preparation(script.main, script.build_parser(), command)
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("pristine")
    write_refer(root, with_images=True)
    return root


@pytest.fixture
def root(pristine, tmp_path):
    """A complete datasets folder that a test may damage."""
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    return tmp_path


def _files(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_a_complete_folder_is_summed_up_and_left_alone(run, root):
    before = _files(root)
    status, table, errors = run()
    assert status == 0
    assert "prepare_refcoco:" not in errors
    lines = [line.split("  ") for line in table.splitlines()]
    rows = {line[0]: [cell.strip() for cell in line[1:] if cell] for line in lines}
    assert len(rows) == 1 + 24
    assert rows["refcoco_unc_testA"] == ["2 (1975)", "1 (750)", "6 (5657)"]
    assert rows["refcoco+_unc_val"] == ["1 (3805)", "1 (1500)", "1 (~10758)"]
    assert rows["refcoco_google_test"][1:] == ["2 (4527)", "9"]
    assert len(rows["refclef_unc_testC"]) == 3
    assert len({len(line) for line in table.splitlines()}) == 1
    assert _files(root) == before
    assert run()[:2] == (0, table)


def test_a_selection_needs_only_its_own_files(run, root):
    shutil.rmtree(root / "refclef")
    (root / "refcocog" / "refs(google).p").unlink()
    status, table, _ = run("--datasets", "refcocog_umd", "refcoco+")
    assert status == 0
    names = [line.split()[0] for line in table.splitlines()[1:]]
    assert names == [
        *(f"refcocog_umd_{split}" for split in ("train", "val", "test")),
        *(f"refcoco+_unc_{split}" for split in ("train", "val", "testA", "testB")),
    ]
    assert run("--datasets", "refcocog")[0] == 1


def test_the_generalised_references_are_checked_when_asked_for(run, root, tmp_path):
    status, table, _ = run("--datasets", "grefcoco")
    assert status == 0
    rows = [line.split() for line in table.splitlines()]
    assert rows[2] == ["grefcoco_unc_val", "2", "1", "(1500)", "4"]
    shutil.rmtree(root / "grefcoco")
    assert run()[0] == 0
    errors = run("--datasets", "grefcoco_unc")[2]
    assert f"{tmp_path}/grefcoco/grefs(unc).json is missing. Get instances.json and" in errors


def test_an_unknown_name_is_explained(run):
    status, _, errors = run("--datasets", "refcoco_umd")
    assert status == 1
    assert "no referring dataset 'refcoco_umd'; choose from refcoco, refcoco+, refcocog" in errors


def test_an_empty_folder_gives_a_list_of_what_to_get(run, tmp_path):
    status, table, errors = run()
    assert (status, table) == (1, "")
    for sentence in (
        f"{tmp_path}/refcoco/refs(unc).p is missing; get it with `python datasets/download.py ref",
        f"{tmp_path}/refcocog/refs(google).p is missing",
        f"{tmp_path}/refclef/instances.json is missing",
        "images of refcoco+ are in none of the folders coco/train2014, images/train2014, images/ms",
        "images of refclef are in none of the folders saiapr_tc-12, images/saiapr_tc-12",
    ):
        assert sentence in errors
    # refcoco has two pickles, but its other files are named once.
    assert errors.count("/refcoco/instances.json is missing") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_checked_even_if_something_is_missing(run, root):
    (root / "refcoco" / "refs(google).p").unlink()
    status, table, errors = run()
    assert status == 1
    assert "refcoco_unc_val" in table
    assert "refcoco_google" not in table
    assert errors.count("prepare_refcoco:") == 1


LAYOUTS = {
    "LISA": ("refer_seg", "refer_seg/images/mscoco/images/train2014"),
    "PSALM": ("refseg", "refseg/images/mscoco/train2014"),
    "Sa2VA": ("ref_seg", "ref_seg/refcoco/coco2014/train2014"),
    "REFER": ("data", "data/images/mscoco/images/train2014"),
    "GLaMM": ("Refer_Segm", "coco_2014/train2014"),
}


@pytest.mark.parametrize("project", LAYOUTS)
def test_other_layouts_are_linked(run, pristine, tmp_path, project):
    annotations, images = LAYOUTS[project]
    for dataset in ("refcoco", "refcoco+", "refclef"):
        shutil.copytree(pristine / dataset, tmp_path / annotations / dataset)
    shutil.copytree(pristine / "coco" / "train2014", tmp_path / images)
    shutil.copytree(pristine / "saiapr_tc-12", tmp_path / annotations / "images" / "saiapr_tc-12")
    before = _files(tmp_path)
    status, table, _ = run("--datasets", "refcoco", "refcoco+", "refclef")
    assert status == 0
    assert len(table.splitlines()) == 1 + 4 + 3 + 4 + 5 + 3
    for name in ("refcoco", "refcoco+", "refclef", "coco/train2014", "saiapr_tc-12"):
        link = tmp_path / name
        assert link.is_symlink()
        # The whole folder may be moved elsewhere.
        assert not link.readlink().is_absolute()
    assert before.items() <= _files(tmp_path).items()
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}_moved"))
    assert run("--datasets", "refcoco", "refclef", root=moved)[0] == 0


def test_images_of_2017_need_no_link(run, root):
    folder = root / "coco" / "train2017"
    folder.mkdir()
    for image in (root / "coco" / "train2014").iterdir():
        image.rename(folder / image.name.split("_")[-1])
    (root / "coco" / "train2014").rmdir()
    assert run("--datasets", "refcoco")[0] == 0
    assert not (root / "coco" / "train2014").exists()


def test_without_symlinks_it_says_what_to_move(run, root, monkeypatch):
    (root / "refer_seg").mkdir()
    (root / "refcoco").rename(root / "refer_seg" / "refcoco")

    def refuse(*arguments, **options):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    status, _, errors = run()
    assert status == 1
    assert (
        f"{root}/refer_seg/refcoco cannot be linked to {root}/refcoco (no links here); mo" in errors
    )


def test_images_that_do_not_fit_are_found(run, root):
    folder = root / "coco" / "train2014"
    (folder / "COCO_train2014_000000000101.jpg").unlink()
    assert "1 of 6 images do not fit, first: " in run("--datasets", "refcoco_unc")[2]
    Image.new("RGB", (7, 9)).save(folder / "COCO_train2014_000000000101.jpg")
    status, _, errors = run("--datasets", "refcoco_unc")
    assert status == 1
    assert "000000000101.jpg has 7 x 9 pixels, its annotation says 202 x 286" in errors
    (folder / "COCO_train2014_000000000101.jpg").write_text("no image")
    assert "000000000101.jpg cannot be read" in run("--datasets", "refcoco_unc")[2]


def test_an_image_stored_on_its_side_fits(script, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "side.jpg", exif=exif)
    assert script.check_image(script.ImageCheck(str(tmp_path / "side.jpg"), 40, 30)) is None
    assert script.check_image(script.ImageCheck(str(tmp_path / "side.jpg"), 30, 40)) is not None


def test_a_hostile_pickle_is_refused(run, root):
    content = f"cos\nmkdir\n(S'{root}/executed'\ntR.".encode()
    (root / "refcoco+" / "refs(unc).p").write_bytes(content)
    status, _, errors = run()
    assert status == 1
    assert "refs(unc).p is not a plain pickle" in errors
    assert not (root / "executed").exists()


def test_strict_stops_at_a_broken_annotation(run, root):
    path = root / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    instances["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(instances))
    assert run("--datasets", "refcoco")[0] == 0
    status, _, errors = run("--datasets", "refcoco", "--strict")
    assert status == 1
    assert "annotations with a box but no mask, first annotation 10101 of image 101" in errors
