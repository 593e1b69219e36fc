import io
import stat
import tarfile
import zipfile

import pytest

from rose_d2.prepare import download
from rose_d2.prepare.download import DownloadError
from rose_d2.prepare.unpacking import UnpackError, unpack


def zip_of(path, members):
    """Members are name -> content; a content that is a tuple is a link to its only item."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if isinstance(content, tuple):
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                content = content[0]
            file.writestr(info, content)
    return path


def tar_of(path, members):
    """As `zip_of`; a TarInfo type as second item of the tuple makes another kind of link."""
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.linkname, info.type = (*content, tarfile.SYMTYPE)[:2]
                file.addfile(info)
            else:
                content = content.encode() if isinstance(content, str) else content
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


MAKERS = pytest.mark.parametrize("make", [zip_of, tar_of])


def tree(folder):
    """Every file under a folder with its content."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return root


@MAKERS
def test_folders_there_are_merged_and_files_replaced(make, tmp_path, root):
    (root / "coco/annotations").mkdir(parents=True)
    (root / "coco/annotations/old.json").write_text("old")
    (root / "coco/annotations/a.json").write_text("former")
    archive = make(tmp_path / "a", {"./annotations/a.json": "new", "images/train/1.jpg": "one"})
    for _ in range(2):
        unpack(archive, root / "coco", expected=["images/train"])
    assert tree(root) == {
        "coco/annotations/a.json": "new",
        "coco/annotations/old.json": "old",
        "coco/images/train/1.jpg": "one",
    }
    assert sorted(path.name for path in (root / "coco").iterdir()) == ["annotations", "images"]


@MAKERS
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/tmp/evil_rose", "C:/evil", "a\\..\\..\\evil"]
)
def test_names_outside_are_refused(make, tmp_path, root, name):
    archive = make(tmp_path / "a", {"good": "good", name: "evil"})
    with pytest.raises(UnpackError, match="outside of its folder; nothing of it was unpacked"):
        unpack(archive, root)
    assert tree(root) == {} and not (tmp_path / "evil").exists()


@MAKERS
@pytest.mark.parametrize("link", ["/etc/passwd", "../secret", "a/../../secret"])
def test_links_outside_are_refused(make, tmp_path, root, link):
    (tmp_path / "secret").write_text("secret")
    archive = make(tmp_path / "a", {"good": "good", "link": (link,)})
    with pytest.raises(UnpackError, match="outside of its folder"):
        unpack(archive, root)
    assert tree(root) == {}


def test_hard_links_outside_are_refused(tmp_path, root):
    archive = tar_of(tmp_path / "a", {"link": ("../secret", tarfile.LNKTYPE)})
    with pytest.raises(UnpackError, match="outside of its folder"):
        unpack(archive, root)


@MAKERS
def test_a_chain_of_links_leads_nowhere(make, tmp_path, root):
    # Each link stays inside by its words; followed one through the other they lead out.
    members = {
        "top/file": "content",
        "a/b/c": ("../../top",),
        "a/b/c/up": ("../..",),
        "a/b/c/up/evil": "evil",
    }
    with pytest.raises(UnpackError, match="has a link 'c' to 'top'"):
        unpack(make(tmp_path / "a", members), root)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "root"]


@MAKERS
def test_writing_through_a_link_stays_inside(make, tmp_path, root):
    (tmp_path / "outside").mkdir()
    members = {"images": (str(tmp_path / "outside"),), "images/evil": "evil"}
    with pytest.raises(UnpackError):
        unpack(make(tmp_path / "a", members), root)
    assert tree(tmp_path / "outside") == {} and tree(root) == {}


@MAKERS
def test_links_inside_become_copies(make, tmp_path, root):
    members = {"b/link": ("../a/file",), "a/file": "content"}
    unpack(make(tmp_path / "a", members), root)
    assert tree(root) == {"a/file": "content", "b/link": "content"}
    assert not (root / "b/link").is_symlink()


def test_hard_links_inside_become_copies(tmp_path, root):
    members = {"a/file": "content", "b/link": ("a/file", tarfile.LNKTYPE)}
    unpack(tar_of(tmp_path / "a", members), root)
    assert tree(root) == {"a/file": "content", "b/link": "content"}


def test_devices_are_refused(tmp_path, root):
    archive = tar_of(tmp_path / "a", {"pipe": ("", tarfile.FIFOTYPE)})
    with pytest.raises(UnpackError, match="'pipe', which is neither file nor folder"):
        unpack(archive, root)


TOO_MUCH = r"unpacks to more than .*, which is too much for this dataset; nothing of it was unp"


def test_a_zip_bomb_is_refused_before_it_bursts(tmp_path, root, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(1_000_000))
    size = (tmp_path / "a.zip").stat().st_size
    growth = 1_000_000 // size
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", lambda *_: pytest.fail("something was written"))
        with pytest.raises(UnpackError, match=rf"a\.zip {TOO_MUCH}"):
            unpack(tmp_path / "a.zip", root, max_growth=growth)
    assert list(root.iterdir()) == []
    unpack(tmp_path / "a.zip", root, max_growth=growth + 1)
    assert (root / "zeros").stat().st_size == 1_000_000


def test_a_zip_bomb_with_a_false_size_is_damaged(tmp_path, root):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(1_000_000))
    false = (
        (tmp_path / "a.zip")
        .read_bytes()
        .replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    )
    (tmp_path / "a.zip").write_bytes(false)
    with pytest.raises(UnpackError, match="is damaged"):
        unpack(tmp_path / "a.zip", root)
    assert list(root.iterdir()) == []


def test_a_compressed_tar_bomb_is_refused(tmp_path, root):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        for name in ("first", "second"):
            info = tarfile.TarInfo(name)
            info.size = 1_000_000
            file.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(UnpackError, match=TOO_MUCH):
        unpack(tmp_path / "a.tar.gz", root)
    assert list(root.iterdir()) == []


def test_copies_of_links_count(tmp_path, root):
    links = {f"link{k}": ("file", tarfile.LNKTYPE) for k in range(30)}
    archive = tar_of(tmp_path / "a", {"file": "x" * 20_000} | links)
    unpack(archive, root, max_growth=20)
    with pytest.raises(UnpackError, match=TOO_MUCH):
        unpack(archive, root, max_growth=5)


def test_archives_within_count_too(tmp_path, root):
    with zipfile.ZipFile(tmp_path / "inner.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(1_000_000))
    inner = (tmp_path / "inner.zip").read_bytes()
    archive = zip_of(tmp_path / "outer", {"inner.zip": inner, "1.txt": "one"})
    with pytest.raises(UnpackError, match=rf"inner\.zip {TOO_MUCH}"):
        unpack(archive, root, inner={"inner.zip": "."})
    assert list(root.iterdir()) == []


def test_a_python_that_cannot_check_tar_files_is_named(tmp_path, root, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UnpackError, match=r"is a tar file: unpacking it needs Python 3\.10\.12"):
        unpack(tar_of(tmp_path / "a", {"1.txt": "one"}), root)
    unpack(zip_of(tmp_path / "b", {"1.txt": "one"}), root)
    assert tree(root) == {"1.txt": "one"}


def test_a_damaged_archive_leaves_nothing(tmp_path, root):
    archive = zip_of(tmp_path / "a.zip", {"1.txt": "first", "2.txt": "second"})
    archive.write_bytes(archive.read_bytes().replace(b"second", b"secund"))
    with pytest.raises(UnpackError, match=r"a\.zip is damaged .*2\.txt.*; delete it"):
        unpack(archive, root)
    assert list(root.iterdir()) == []


@MAKERS
def test_a_truncated_archive_leaves_nothing(make, tmp_path, root):
    archive = make(tmp_path / "a", {"1.txt": "a" * 5000})
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(UnpackError, match="delete it and fetch it again"):
        unpack(archive, root)
    assert list(root.iterdir()) == []


def test_a_password_is_named(tmp_path, root):
    archive = zip_of(tmp_path / "a", {"1.txt": "a"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(UnpackError, match=r"password for '1\.txt'"):
        unpack(archive, root)


def test_archives_within_are_unpacked_and_litter_is_not(tmp_path, root):
    inner = zip_of(tmp_path / "inner", {"masks/1.png": "one", "__MACOSX/masks/._1.png": "x"})
    members = {
        "annotations/masks.zip": inner.read_bytes(),
        "annotations/masks.json": "{}",
        "annotations/.DS_Store": "x",
    }
    archive = zip_of(tmp_path / "outer", members)
    unpack(archive, root, inner={"annotations/masks.zip": "."}, expected=["masks"])
    assert tree(root) == {"annotations/masks.json": "{}", "masks/1.png": "one"}


def test_another_archive_than_expected_is_not_unpacked(tmp_path, root):
    archive = zip_of(tmp_path / "a.zip", {"00/1.jpg": "one", "01/2.jpg": "two"})
    with pytest.raises(UnpackError, match=r"a\.zip has no images, only 00, 01"):
        unpack(archive, root, expected=["images"])
    with pytest.raises(UnpackError, match=r"a\.zip has no inner\.zip"):
        unpack(archive, root, inner={"inner.zip": "."})
    assert list(root.iterdir()) == []


def test_what_a_killed_run_left_is_cleared(tmp_path, root):
    archive = zip_of(tmp_path / "a.zip", {"1.txt": "one"})
    (root / ".a.zip.partial").mkdir()
    (root / ".a.zip.partial/stale.txt").write_text("stale")
    unpack(archive, root)
    assert tree(root) == {"1.txt": "one"}


def test_ctrl_c_leaves_nothing(tmp_path, root, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    archive = zip_of(tmp_path / "a.zip", {"1.txt": "one"})
    monkeypatch.setattr("rose_d2.prepare.unpacking.shutil.copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, root)
    assert list(root.iterdir()) == []


def test_the_disk_is_asked_first(tmp_path, root, monkeypatch):
    archive = zip_of(tmp_path / "a.zip", {"1.txt": "a" * 5000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("", (), {"free": 4000}))
    with pytest.raises(DownloadError, match=r"a\.zip needs 5\.0 kB, but"):
        unpack(archive, root)


def test_a_folder_is_never_replaced_by_a_file(tmp_path, root):
    (root / "images").mkdir()
    with pytest.raises(UnpackError, match="images is a folder"):
        unpack(zip_of(tmp_path / "a.zip", {"images": "a file"}), root)
