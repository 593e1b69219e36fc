"""Where the archives of every dataset come from, how they are checked and where they go.

COCO, ADE20K and REFER publish no checksums. Those below are recorded by projects that fetched the
files from the official hosts: TensorFlow Datasets (COCO, ADE20K instances), several loaders that
agree (ADE20K), and two evaluations on the archived copies (RefCOCO, RefCOCO+, RefCOCOg). Where no
record was found there is none here: then only the length is checked, and the archive's own sums
when it is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rose_d2.prepare.download import RemoteFile

_COCO_LICENCE = "Annotations CC BY 4.0; the images belong to their Flickr owners."
_REFER_LICENCE = "The archive states none (the REFER toolkit is Apache-2.0)."
ALL_FAMILIES = "all"
_ADE_LICENCE = (
    "Scene-parsing annotations BSD 3-Clause; images for non-commercial research and teaching only."
)


@dataclass(frozen=True)
class Archive:
    """One archive: what it is, where it comes from, and what is there once it is unpacked.

    Args:
        key: its name on the command line.
        families: the datasets that need it.
        file_name: of the archive.
        remote: its mirrors, official ones first; without any it must be fetched by hand.
        provides: files and folders under the root that it makes; it is present if all are.
        licence: one sentence.
        folder: under the root, where it is unpacked.
        inner: archives within it, see `rose_d2.prepare.unpacking.unpack`.
        substitutes: folders under the root of which one makes this archive unnecessary.
        about: size in bytes, where only a rounded one is known.
        by_hand: what to do when no mirror delivers; may name {root} and {downloads}.
    """

    key: str
    families: tuple[str, ...]
    file_name: str
    remote: RemoteFile
    provides: tuple[str, ...]
    licence: str
    folder: str = "."
    inner: Mapping[str, str] = field(default_factory=dict)
    substitutes: tuple[str, ...] = ()
    about: int | None = None
    by_hand: str = ""

    @property
    def size(self) -> int | None:
        """Bytes to fetch, if known."""
        return self.remote.size or self.about

    def is_present(self, root: Path) -> bool:
        """Whether everything it provides is under the root."""
        return all(_holds_something(root / path) for path in self.provides)

    def is_replaced(self, root: Path, coming: Iterable[str] = ()) -> bool:
        """Whether other files, there or coming, do its work."""
        coming = set(coming)
        return any(path in coming or _holds_something(root / path) for path in self.substitutes)


def _holds_something(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def coco_archive(
    key: str,
    path: str,
    size: int,
    sha256: str,
    provides: tuple[str, ...],
    *,
    families: tuple[str, ...] = ("coco",),
    has_copy: bool = True,
    inner: Mapping[str, str] | None = None,
    substitutes: tuple[str, ...] = (),
) -> Archive:
    """An archive of COCO's own host and its copies, unpacked under `coco`.

    Args:
        key: its name on the command line.
        path: on the host.
        size: bytes.
        sha256: hexadecimal.
        provides: files and folders under `coco` that it makes.
        families: the datasets that need it.
        has_copy: whether fast.ai keeps one.
        inner: archives within it, see `rose_d2.prepare.unpacking.unpack`.
        substitutes: folders under the root of which one makes this archive unnecessary.
    """
    name = path.rpartition("/")[2]
    urls = [
        f"http://images.cocodataset.org/{path}",
        f"https://s3.amazonaws.com/images.cocodataset.org/{path}",  # the same store, over TLS
    ]
    if has_copy:
        urls.append(f"https://s3.amazonaws.com/fast-ai-coco/{name}")
    return Archive(
        key=key,
        families=families,
        file_name=name,
        remote=RemoteFile(tuple(urls), size, f"sha256:{sha256}"),
        provides=tuple(f"coco/{entry}" for entry in provides),
        licence=_COCO_LICENCE,
        folder="coco",
        inner=inner or {},
        substitutes=substitutes,
    )


def refer_archive(name: str, split_by: str, capture: str, remote: tuple) -> Archive:
    """An archive of REFER annotations, whose own host is gone: the Internet Archive has captures.

    Args:
        name: of the dataset.
        split_by: who made its splits.
        capture: time stamp of the capture.
        remote: size in bytes and checksum of the file, as far as they are known.
    """
    host = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
    urls = tuple(
        f"https://web.archive.org/web/{capture}{form}/{host}/{name}.zip" for form in ("id_", "")
    )
    return Archive(
        key=f"{name}_annotations",
        families=(name,),
        file_name=f"{name}.zip",
        remote=RemoteFile(urls, *remote),
        provides=(f"{name}/instances.json", f"{name}/refs({split_by}).p"),
        licence=_REFER_LICENCE,
        by_hand=(
            f"The original host of {name}.zip is gone and the Internet Archive is slow at times: "
            "try again later, or ask a colleague for a copy (see "
            f"github.com/lichengunc/refer/issues/14) and put it at {{downloads}}/{name}.zip."
        ),
    )


ARCHIVES: tuple[Archive, ...] = (
    Archive(
        key="ade20k_scenes",
        families=("ade20k",),
        file_name="ADEChallengeData2016.zip",
        remote=RemoteFile(
            (
                "https://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            ),
            checksum="md5:7328b3957e407ddae1d3cbf487f149ef",
        ),
        provides=tuple(
            f"ADEChallengeData2016/{kind}/{split}"
            for kind in ("images", "annotations")
            for split in ("training", "validation")
        ),
        licence=_ADE_LICENCE,
        about=967_000_000,
    ),
    Archive(
        key="ade20k_instances",
        families=("ade20k",),
        file_name="annotations_instance.tar",
        remote=RemoteFile(
            ("http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar",),
            90_398_720,
            "sha256:5eb0db23c64779bc646ca535a3d495db0a75700b9467f8a79eecaf728b266acd",
        ),
        provides=tuple(
            f"ADEChallengeData2016/annotations_instance/{split}"
            for split in ("training", "validation")
        ),
        licence=_ADE_LICENCE,
        folder="ADEChallengeData2016",
    ),
    coco_archive(
        "coco_train2017",
        "zips/train2017.zip",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        ("train2017",),
    ),
    coco_archive(
        "coco_val2017",
        "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        ("val2017",),
    ),
    coco_archive(
        "coco_annotations",
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    ),
    coco_archive(
        "coco_panoptic",
        "annotations/panoptic_annotations_trainval2017.zip",
        860_725_834,
        "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
        (
            "annotations/panoptic_train2017.json",
            "annotations/panoptic_val2017.json",
            "panoptic_train2017",
            "panoptic_val2017",
        ),
        inner={
            "annotations/panoptic_train2017.zip": ".",
            "annotations/panoptic_val2017.zip": ".",
        },
    ),
    Archive(
        key="coco_stuff",
        families=("coco",),
        file_name="stuffthingmaps_trainval2017.zip",
        # Checksum and exact size: not found.
        remote=RemoteFile(
            tuple(
                f"{host}/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"
                for host in (
                    "https://calvin.inf.ed.ac.uk",
                    "http://calvin.inf.ed.ac.uk",
                    "https://calvin-vision.net",
                )
            )
        ),
        provides=("coco/stuffthingmaps/train2017", "coco/stuffthingmaps/val2017"),
        licence="COCO-Stuff annotations CC BY 4.0.",
        folder="coco/stuffthingmaps",
        about=659_000_000,
    ),
    coco_archive(
        "coco_train2014",
        "zips/train2014.zip",
        13_510_573_713,
        "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
        ("train2014",),
        families=("refcoco", "refcoco+", "refcocog"),
        has_copy=False,
        # train2017 holds the same images.
        substitutes=("images/train2014", "images/mscoco/images/train2014", "coco/train2017"),
    ),
    refer_archive(
        "refcoco",
        "unc",
        "20220413011718",
        (
            53_993_993,
            "sha256:7f924bb7ed8dc4568058e4ff626281918d56e5206f4c868c5a80f088f38c8bf0",
        ),
    ),
    refer_archive(
        "refcoco+",
        "unc",
        "20220413011656",
        (
            45_613_210,
            "sha256:5f1238112d63199e68da54a28f201471909b21ded7ed79a57d51b4c1443c6b45",
        ),
    ),
    refer_archive(
        "refcocog",
        "umd",
        "20220413012904",
        (
            56_712_951,
            "sha256:3d1f7e5b2ff2205940bf59de55f861f5f2cc1403fb980669933a7f9af1aa8211",
        ),
    ),
    # Size and checksum of the two RefCLEF archives: not found.
    refer_archive("refclef", "unc", "20220413011817", ()),
    Archive(
        key="refclef_images",
        families=("refclef",),
        file_name="saiapr_tc-12.zip",
        remote=RemoteFile(
            (
                "https://web.archive.org/web/20220515000000id_/http://bvisionweb1.cs.unc.edu/"
                "licheng/referit/data/images/saiapr_tc-12.zip",
                # A private copy, in which others found all 19 997 images.
                "https://huggingface.co/datasets/cxz0416/saiapr_tc/resolve/main/saiapr_tc-12.zip",
            )
        ),
        provides=("saiapr_tc-12",),
        licence="IAPR TC-12: free of charge and without copyright restrictions, says ImageCLEF.",
        substitutes=("images/saiapr_tc-12",),
        by_hand=(
            "The original host of saiapr_tc-12.zip is gone and the Internet Archive often stalls: "
            "try again later, or ask a colleague for a copy (see "
            "github.com/lichengunc/refer/issues/15) and put it at {downloads}/saiapr_tc-12.zip."
        ),
    ),
    Archive(
        key="mapillary",
        families=("mapillary",),
        file_name="mapillary-vistas-dataset_public_v2.0.zip",
        remote=RemoteFile(()),
        provides=("mapillary_vistas/training/images", "mapillary_vistas/validation/images"),
        licence="Mapillary Vistas Research Use License: research only, no commercial use.",
        folder="mapillary_vistas",
        by_hand=(
            "Mapillary gives the dataset only to those who accept its research licence: ask for it "
            "at https://www.mapillary.com/dataset/vistas (join the parts of the archive if there "
            "are several), then put it at "
            "{downloads}/mapillary-vistas-dataset_public_v2.0.zip and give this command again, or "
            "unpack it yourself so that {root}/mapillary_vistas/training/images is there."
        ),
    ),
)


def families() -> list[str]:
    """The datasets, in the order of the table."""
    return list(dict.fromkeys(family for archive in ARCHIVES for family in archive.families))


def select_archives(names: Iterable[str]) -> list[Archive]:
    """The archives of some datasets, in the order of the table.

    Args:
        names: datasets, keys of single archives, or "all".

    Raises:
        ValueError: a name is neither.
    """
    names = list(names)
    known = {ALL_FAMILIES, *families(), *(archive.key for archive in ARCHIVES)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"Unknown dataset {unknown[0]!r}; there are {', '.join(families())} and "
            f"{ALL_FAMILIES!r}, and the single archives that --list shows."
        )
    wanted = set(names)
    return [
        archive
        for archive in ARCHIVES
        if ALL_FAMILIES in wanted or archive.key in wanted or wanted & set(archive.families)
    ]
