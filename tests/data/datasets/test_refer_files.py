import json
import logging
import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_util

from rose_d2.data.build import build_rose_test_loader, load_test_dicts, sample_key
from rose_d2.data.datasets.refer_files import (
    ALL_SENTENCES,
    EXPRESSION_KINDS,
    expression_kind,
    in_split,
    load_plain_pickle,
    load_refer,
    load_refer_splits,
    read_annotated_images,
    references_file,
    referring_samples,
)
from rose_d2.data.datasets.registration import strict_annotations
from rose_d2.synthetic.expressions import list_expressions
from rose_d2.synthetic.scene import compose_scene

POLYGON = [[0, 0, 2, 0, 2, 4, 0, 4]]
PLAIN = [{"ref_id": 5, "sentences": [{"sent": "caf\xe9", "tokens": ("caf\xe9", 1)}], 1: 2.5}]
ANNOTATIONS = [{"category_id": 0}]


def _annotation(annotation_id, image_id, category_id, segmentation):
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "bbox": [0, 0, 2, 4],
        "area": 8,
        "iscrowd": 0,
    }


INSTANCES = {
    "images": [
        {"id": 1, "file_name": "COCO_train2014_1.jpg", "height": 4, "width": 6},
        {"id": 2, "file_name": "COCO_train2014_2.jpg", "height": 4, "width": 6},
    ],
    "annotations": [
        _annotation(30, 1, 18, POLYGON),
        _annotation(40, 2, 90, POLYGON),
        _annotation(31, 1, 90, POLYGON),
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 18, "name": "dog"}],
}


def _reference(ref_id, ann_id, image_id, split, *sentences):
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "category_id": 18,
        "image_id": image_id,
        # The toolkit's own names carry a suffix, and its readers ignore them.
        "file_name": f"COCO_train2014_{image_id}_{ref_id}.jpg",
        "split": split,
        "sent_ids": [ref_id * 10 + k for k in range(len(sentences))],
        "sentences": [
            {"raw": text.upper(), "sent": text, "sent_id": ref_id * 10 + k, "tokens": text.split()}
            for k, text in enumerate(sentences)
        ],
    }


REFERENCES = [
    _reference(6, 40, 2, "val", "the brush"),
    _reference(5, 31, 1, "val", "left brush", "the brush on the left"),
    _reference(4, 30, 1, "testAB", "dog"),
]


@pytest.fixture
def write(tmp_path):
    """Writes a folder in the REFER layout and returns it."""

    def write(references=REFERENCES, instances=INSTANCES):
        (tmp_path / "instances.json").write_text(json.dumps(instances))
        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(references, 2))
        return tmp_path

    return write


def test_one_record_per_reference_and_sentence(write):
    records = load_refer(write(), "unc", "val", "pictures")
    assert [(r["image_id"], r["ref_id"], r["sent_id"]) for r in records] == [
        (1, 5, 50),
        (1, 5, 51),
        (2, 6, 60),
    ]
    assert [r["sentence"] for r in records] == ["left brush", "the brush on the left", "the brush"]
    first = records[0]
    assert first["file_name"] == "pictures/COCO_train2014_1.jpg"
    assert (first["height"], first["width"]) == (4, 6)
    assert [a["category_id"] for a in first["annotations"]] == [0, 1]
    assert first["target_indices"] == [1]
    assert first["annotations"][0]["segmentation"] == POLYGON


def test_category_ids_can_be_given(write):
    record = load_refer(write(), "unc", "val", "pictures", {18: 4, 90: 2})[0]
    assert [a["category_id"] for a in record["annotations"]] == [4, 2]


@pytest.mark.parametrize(
    ("label", "split", "expected"),
    [
        ("train", "train", True),
        ("val", "train", False),
        ("val_unseen", "val", False),
        ("testA", "testA", True),
        ("testAB", "testB", True),
        ("testA", "testB", False),
        ("testC", "test", True),
        ("test", "test", True),
        ("train", "testA", False),
    ],
)
def test_split_labels_follow_the_toolkit(label, split, expected):
    assert in_split(label, split) == expected


def test_a_split_without_references_is_an_error(write):
    with pytest.raises(ValueError, match="no reference of split 'testC'.*testAB, val"):
        load_refer(write(), "unc", "testC", "pictures")


def test_dicts_of_one_image_share_one_annotations_list(write):
    left, second, other = load_refer(write(), "unc", "val", "pictures")
    assert left["annotations"] is second["annotations"]
    assert left["annotations"] is not other["annotations"]
    assert left["target_indices"] is not second["target_indices"]


def test_several_splits_come_from_one_reading(write):
    folder = write()
    splits = load_refer_splits(folder, "unc", ("testA", "val"), "pictures")
    assert {split: [r["sent_id"] for r in records] for split, records in splits.items()} == {
        "testA": [40],
        "val": [50, 51, 60],
    }
    assert splits["val"] == load_refer(folder, "unc", "val", "pictures")
    # Image 1 has references in both splits; its objects are in memory once.
    assert splits["testA"][0]["annotations"] is splits["val"][0]["annotations"]


def test_images_may_have_other_names_on_disk(write):
    record = load_refer(
        write(), "unc", "testB", "train2017", name_image=lambda name: name.split("_")[-1]
    )[0]
    assert record["file_name"] == "train2017/1.jpg"


UNDRAWN = _annotation(60, 1, 18, [])


BROKEN_REFERENCES = {
    "references to an image that instances.json lacks": _reference(9, 40, 77, "val", "x"),
    "references to an annotation that their image does not have": _reference(9, 40, 1, "val", "x"),
    "references to an annotation that cannot be used": _reference(9, 60, 1, "val", "x"),
    "empty sentences": _reference(9, 31, 1, "val", "ok", " ", ""),
}


def test_broken_references_are_left_out_and_counted_in_one_warning(write, caplog):
    instances = INSTANCES | {"annotations": [*INSTANCES["annotations"], UNDRAWN]}
    folder = write([*BROKEN_REFERENCES.values(), REFERENCES[0]], instances)
    with caplog.at_level(logging.WARNING):
        records = load_refer(folder, "unc", "val", "pictures")
    assert [r["sentence"] for r in records] == ["ok", "the brush"]
    about_annotations, about_references = caplog.messages
    assert "1 annotations with a box but no mask" in about_annotations
    assert about_references.startswith(f"{folder / 'refs(unc).p'}: left out ")
    for reason in BROKEN_REFERENCES:
        count = 2 if "sentences" in reason else 1
        assert f"{count} {reason} (first: " in about_references


# In the strict reading an annotation that cannot be used is an error by itself.
@pytest.mark.parametrize("reason", [r for r in BROKEN_REFERENCES if "cannot be used" not in r])
def test_broken_references_are_fatal_when_strict(write, reason):
    folder = write([BROKEN_REFERENCES[reason], REFERENCES[0]])
    with strict_annotations(), pytest.raises(ValueError, match=f"{reason}, first .*reference 9"):
        load_refer(folder, "unc", "val", "pictures")


def test_sound_files_give_no_warning_and_pass_the_strict_reading(write, caplog):
    with strict_annotations():
        assert len(load_refer(write(), "unc", "val", "pictures")) == 3
    assert not caplog.messages


def test_files_that_do_not_belong_together_are_an_error(write):
    folder = write([_reference(9, 40, 77, "val", "x"), _reference(8, 40, 1, "val", "x")])
    with pytest.raises(ValueError, match="no reference of split 'val' can be used"):
        load_refer(folder, "unc", "val", "pictures")


def test_malformed_references_are_an_error(write):
    with pytest.raises(ValueError, match="holds dict; a list of dicts"):
        load_refer(write({"ref_id": 1}), "unc", "val", "pictures")
    with pytest.raises(ValueError, match="lacks ann_id, image_id, split, sentences"):
        load_refer(write([{"ref_id": 1}]), "unc", "val", "pictures")
    nameless = _reference(5, 31, 1, "val", "x")
    del nameless["sentences"][0]["sent"]
    with pytest.raises(ValueError, match="a sentence of reference 5 lacks sent;"):
        load_refer(write([nameless]), "unc", "val", "pictures")


def test_a_hostile_pickle_stops_the_loader(write):
    folder = write()
    (folder / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"refs\(unc\).p is not a plain pickle.*os.system"):
        load_refer(folder, "unc", "val", "pictures")


@pytest.fixture
def write_generalised(tmp_path):
    """Writes a folder of gRefCOCO with references of image 1 to lists of annotations."""

    def write(*targets, crowds=()):
        folder = tmp_path / "grefcoco"
        folder.mkdir()
        annotations = [a | {"iscrowd": int(a["id"] in crowds)} for a in INSTANCES["annotations"]]
        instances = INSTANCES | {"annotations": annotations}
        references = [_reference(k, ids, 1, "val", f"no {k}") for k, ids in enumerate(targets)]
        (folder / "instances.json").write_text(json.dumps(instances))
        (folder / "grefs(unc).json").write_text(json.dumps(references))
        return folder

    return write


def test_generalised_references_are_about_any_number_of_objects(write_generalised):
    folder = write_generalised([31, 30], [-1], [30])
    records = load_refer(folder, "unc", "val", "pictures")
    assert [r["target_indices"] for r in records] == [[1, 0], [], [0]]
    assert [len(r["annotations"]) for r in records] == [2, 2, 2]


def test_crowds_are_no_targets_of_generalised_references(write_generalised, caplog):
    folder = write_generalised([31, 30], [30], [-1], crowds=[30])
    records = load_refer(folder, "unc", "val", "pictures")
    # The second one, about a crowd only, must not pass for a sentence about nothing.
    assert [(r["ref_id"], r["target_indices"]) for r in records] == [(0, [1]), (2, [])]
    assert [a["iscrowd"] for a in records[0]["annotations"]] == [1, 0]
    assert "1 references to crowds only (first: reference 1 of image 1)" in caplog.text


def test_a_generalised_reference_with_one_bad_object_is_left_out(write_generalised, caplog):
    records = load_refer(write_generalised([30, 99], [30]), "unc", "val", "pictures")
    assert [r["ref_id"] for r in records] == [1]
    assert "references to an annotation that their image does not have" in caplog.text


def test_a_single_target_of_minus_one_is_no_reference_to_nothing(write, caplog):
    folder = write([_reference(1, -1, 1, "val", "x"), REFERENCES[1]])
    assert {r["ref_id"] for r in load_refer(folder, "unc", "val", "pictures")} == {5}
    assert "annotation -1" in caplog.text


def test_generalised_references_may_name_one_annotation_without_a_list(write_generalised):
    folder = write_generalised(-1)
    (record,) = load_refer(folder, "unc", "val", "pictures")
    assert record["target_indices"] == []


def test_generalised_references_may_be_pickled(write_generalised):
    folder = write_generalised([30])
    listed = references_file(folder, "unc")
    expected = load_refer(folder, "unc", "val", "pictures")
    with open(listed.with_suffix(".p"), "wb") as file:
        pickle.dump(json.loads(listed.read_text()), file)
    listed.unlink()
    assert references_file(folder, "unc").suffix == ".p"
    assert load_refer(folder, "unc", "val", "pictures") == expected


def test_damaged_generalised_references_are_an_error(write_generalised):
    folder = write_generalised([30])
    references_file(folder, "unc").write_text("[{")
    with pytest.raises(ValueError, match=r"grefs\(unc\).json is not valid JSON"):
        load_refer(folder, "unc", "val", "pictures")


def _code(*columns, size=(4, 6)):
    """What RefCLEF has: a run-length code whose counts are text."""
    mask = np.zeros(size, np.uint8, order="F")
    mask[:, list(columns)] = 1
    code = mask_util.encode(mask)
    return {"size": code["size"], "counts": code["counts"].decode()}


def _referred(annotation_id, category_id, segmentation, iscrowd=0):
    return {
        "id": annotation_id,
        "image_id": 1,
        "category_id": category_id,
        "segmentation": segmentation,
        "bbox": [0, 0, 2, 4],
        "area": 8,
        "iscrowd": iscrowd,
    }


SOUND = _referred(31, 90, [[1, 1], *POLYGON])


BROKEN = {
    "no polygon": _referred(60, 18, []),
    "two corners": _referred(61, 18, [[0, 0, 2, 2]]),
    "nothing": _referred(62, 18, None),
    "empty code": _referred(63, 18, [_code()]),
    "unknown category": _referred(64, 7, POLYGON),
    "other size": _referred(65, 18, [_code(0, size=(6, 4))]),
    "no number": _referred(66, 18, [[0, 0, None, 2, 2, 0]]),
}


@pytest.fixture
def read(tmp_path):
    """Writes annotations of image 1 and reads them back, as references to 31 need them."""

    def read(*annotations, thing_ids=None, image_id=1):
        instances = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in (1, 2)],
            "annotations": annotations,
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 18, "name": "dog"}],
        }
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(instances))
        return read_annotated_images(path, [{"image_id": image_id, "ann_id": 31}], thing_ids)

    return read


def test_only_the_images_that_are_needed_are_read(read):
    assert list(read(SOUND)) == [1]
    assert read(SOUND, image_id=2)[2].annotations == []
    assert read(SOUND, image_id=3) == {}


def test_objects_keep_the_order_of_the_file(read):
    image = read(_referred(50, 18, POLYGON), _referred(40, 90, POLYGON), SOUND)[1]
    assert [a["category_id"] for a in image.annotations] == [0, 1, 1]
    assert image.positions == {50: 0, 40: 1, 31: 2}
    assert image.record["height"] == 4


def test_several_run_length_codes_of_one_object_are_joined(read):
    (annotation,) = read(_referred(31, 90, [_code(0, 1), _code(1, 2)]))[1].annotations
    mask = mask_util.decode(annotation["segmentation"])
    assert mask.any(0).tolist() == [True, True, True, False, False, False]
    assert mask.max() == 1


def test_an_uncompressed_code_is_compressed(read):
    # Column by column: 4 pixels outside, 8 inside, 12 outside.
    code = {"size": [4, 6], "counts": [4, 8, 12]}
    (annotation,) = read(_referred(31, 90, code))[1].annotations
    mask = mask_util.decode(annotation["segmentation"])
    assert mask.any(0).tolist() == [False, True, True, False, False, False]


def test_an_empty_mapping_leaves_all_objects_without_class(read):
    nameless = _referred(31, 90, POLYGON)
    del nameless["category_id"]
    image = read(nameless, _referred(50, 7, POLYGON), thing_ids={})[1]
    assert [a["category_id"] for a in image.annotations] == [-1, -1]


def test_a_described_crowd_is_an_object(read):
    crowds = _referred(50, 18, _code(0), iscrowd=1), _referred(31, 18, _code(1), iscrowd=1)
    assert [a["iscrowd"] for a in read(*crowds)[1].annotations] == [1, 0]


def test_broken_annotations_are_left_out_and_counted_in_one_warning(read, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        image = read(*BROKEN.values(), SOUND)[1]
    assert [a["segmentation"] for a in image.annotations] == [POLYGON]
    assert image.positions == {31: 0}
    assert image.unusable_ids == {60, 61, 62, 63, 64, 65, 66}
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'instances.json'}: left out ")
    assert "4 annotations with a box but no mask (first: annotation 60 of image 1)" in message
    assert "1 annotations of an unknown category (first: annotation 64 of image 1, cat" in message
    assert "1 annotations whose mask has another size than their image (first: an" in message
    assert "1 annotations with coordinates that are no numbers (first: annotation 66" in message


def test_a_reference_to_one_of_two_annotations_of_one_id_means_none(read):
    image = read(SOUND, SOUND | {"category_id": 18}, _referred(50, 18, POLYGON))[1]
    assert len(image.annotations) == 3
    assert image.positions == {50: 2} and image.unusable_ids == {31}


def test_a_missing_box_is_that_of_the_mask(read):
    (annotation,) = read(SOUND | {"bbox": None})[1].annotations
    assert annotation["bbox"] == [0, 0, 2, 4]


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_annotations_are_fatal_when_strict(read, fault):
    broken = BROKEN[fault]
    with strict_annotations(), pytest.raises(ValueError, match=f"annotation {broken['id']} of im"):
        read(SOUND, broken)


def test_sound_annotations_give_no_warning_and_pass_the_strict_reading(read, caplog):
    with strict_annotations():
        assert len(read(SOUND)[1].annotations) == 1
    assert not caplog.messages


def test_damaged_files_are_an_error(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match="instances.json is not valid JSON"):
        read_annotated_images(path, [], None)
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="lacks annotations, categories; a COCO"):
        read_annotated_images(path, [], None)


class _Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def write_pickle(tmp_path):
    def write(content):
        path = tmp_path / "refs(unc).p"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, write_pickle, protocol):
    target = tmp_path / "executed"
    content = pickle.dumps([_Malicious(target)], protocol)
    with pytest.raises(ValueError, match=r"refs\(unc\).p is not a plain pickle.*mkdir.*nothing"):
        load_plain_pickle(write_pickle(content))
    assert not target.exists()
    # The file is dangerous indeed: an ordinary unpickler executes it.
    pickle.loads(content)
    assert target.is_dir()


@pytest.mark.parametrize(
    "content",
    [
        # The old ways to call something, by hand: INST, OBJ, and a class fetched by number.
        b"(S'executed'\nios\nmkdir\n.",
        b"(cos\nmkdir\nS'executed'\no.",
        b"\x80\x02\x82\x01.",
        # Text that is called, state for a list, a persistent id.
        b"\x80\x02X\x05\x00\x00\x00mkdir)R.",
        b"\x80\x02]}X\x01\x00\x00\x00aK\x01sb.",
        b"Pmkdir\n.",
    ],
)
def test_no_opcode_reaches_anything(tmp_path, write_pickle, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="not a plain pickle"):
        load_plain_pickle(write_pickle(content))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [OrderedDict(a=1), {1, 2}, np.arange(3), len])
def test_even_harmless_classes_are_refused_by_old_protocols(write_pickle, content):
    # Protocol 2 spells sets as a call of builtins.set: nothing is imported, so it is refused too.
    with pytest.raises(ValueError, match="not a plain pickle"):
        load_plain_pickle(write_pickle(pickle.dumps(content, 2)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        pickle.dumps(PLAIN, 2)[:-20],
        b"\x80\x02X" + struct.pack("<I", 2**31) + b"short.",
        # Damaged after the first text that is not UTF-8.
        b"\x80\x02]q\x00U\x04caf\xe9q\x01a",
    ],
)
def test_damaged_files_are_refused(write_pickle, content):
    with pytest.raises(ValueError, match="not a plain pickle"):
        load_plain_pickle(write_pickle(content))


@pytest.mark.parametrize(
    ("stored", "text"),
    [(b"caf\xe9", "caf\xe9"), (b"caf\xc3\xa9", "caf\xe9"), (b"cafe", "cafe")],
    ids=["latin-1", "utf-8", "ascii"],
)
def test_byte_strings_of_python_2_become_text(write_pickle, stored, text):
    # What Python 2 wrote for ["..."]: a byte string of a given length, not text.
    content = b"\x80\x02]q\x00U" + bytes([len(stored)]) + stored + b"q\x01a."
    assert load_plain_pickle(write_pickle(content)) == [text]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_plain_content_can_be_read(write_pickle, protocol):
    assert load_plain_pickle(write_pickle(pickle.dumps(PLAIN, protocol))) == PLAIN


def _dict(ref_id, sent_id, sentence, target=0):
    return {
        "image_id": ref_id // 10,
        "annotations": ANNOTATIONS,
        "target_indices": [target],
        "ref_id": ref_id,
        "sent_id": sent_id,
        "sentence": sentence,
    }


SENTENCES = [
    _dict(12, 40, "left dog"),
    _dict(12, 41, "the dog on the left"),
    _dict(11, 38, "cat", target=1),
    _dict(12, 39, "brown one"),
]


def test_per_sentence_takes_the_dicts_as_they_are():
    samples = referring_samples(SENTENCES, "per_sentence")
    assert samples == SENTENCES and samples is not SENTENCES
    assert [sample_key(s) for s in samples] == ["12-40", "12-41", "11-38", "12-39"]


def test_per_ref_puts_all_sentences_of_a_reference_in_one_sample():
    dog, cat = referring_samples(SENTENCES, "per_ref")
    assert [sample_key(dog), sample_key(cat)] == [f"12-{ALL_SENTENCES}", f"11-{ALL_SENTENCES}"]
    # PSALM's way: each sentence is followed by a period.
    assert dog["sentence"] == "left dog. the dog on the left. brown one."
    assert cat["sentence"] == "cat."
    assert (dog["target_indices"], cat["target_indices"]) == ([0], [1])
    assert dog["annotations"] is ANNOTATIONS
    assert SENTENCES[0]["sent_id"] == 40


@pytest.mark.parametrize("key", ["image_id", "target_indices"])
def test_sentences_about_different_objects_are_not_merged(key):
    odd = [SENTENCES[0], SENTENCES[1] | {key: [1] if key == "target_indices" else 7}]
    with pytest.raises(ValueError, match=f"Reference 12 has sentences with the {key}"):
        referring_samples(odd, "per_ref")
    assert referring_samples(odd, "per_sentence") == odd


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="PROTOCOL is 'per_image'; take one of per_sentence, per"):
        referring_samples(SENTENCES, "per_image")


@pytest.fixture
def dog_dataset(scene):
    """A registered dataset of two sentences about one dog."""
    record = scene["referring"]
    dicts = [record, record | {"sentence": "left dog", "sent_id": 10}]
    DatasetCatalog.register("test_dog", lambda: [dict(d) for d in dicts])
    MetadataCatalog.get("test_dog").task = "referring"
    yield "test_dog"
    DatasetCatalog.remove("test_dog")
    MetadataCatalog.remove("test_dog")


@pytest.mark.parametrize(
    ("protocol", "keys", "asked"),
    [
        ("per_sentence", ["8-9", "8-10"], "What is the dog on the left in this"),
        ("per_ref", ["8--1"], "What is the dog on the left. left dog. in this"),
    ],
)
def test_the_test_loader_asks_by_protocol(tiny_cfg, dog_dataset, protocol, keys, asked):
    tiny_cfg.TEST.REFERRING.PROTOCOL = protocol
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    loader = build_rose_test_loader(tiny_cfg, dog_dataset)
    items = [item for batch in loader for item in batch]
    assert [sample_key(item) for item in items] == keys
    assert asked in items[0]["conversation"].instruction
    # Nothing of the truth reaches the model.
    assert items[0]["conversation"].response is None
    assert not {"annotations", "target_indices", "instances"} & items[0].keys()
    assert [sample_key(d) for d in load_test_dicts(tiny_cfg, dog_dataset)] == keys


def test_dense_datasets_do_not_care_for_the_protocol(tiny_cfg, registered_scenes):
    tiny_cfg.TEST.REFERRING.PROTOCOL = "per_ref"
    assert len(load_test_dicts(tiny_cfg, registered_scenes["instance"])) == 3


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("the dog", "name"),
        ("woman in a bright red coat", "name"),
        ("the topping of the pizza", "name"),
        ("the left dog", "position"),
        ("the dog furthest to the left", "position"),
        ("Guy on the RIGHT", "position"),
        ("the upper tree", "position"),
        ("the biggest object", "size"),
        ("tall man in the middle", "size"),
        ("the dog to the left of the cat", "relation"),
        ("the largest cup next to the plate", "relation"),
        ("the dog higher up than the cat", "relation"),
        ("man behind the bench", "relation"),
    ],
)
def test_the_words_tell_the_kind(sentence, kind):
    assert expression_kind(sentence) == kind


def test_clip_art_expressions_have_the_kind_they_were_made_as():
    seen = set()
    for seed in range(20):
        scene = compose_scene(np.random.default_rng(seed))
        for index in range(len(scene.objects)):
            made = list_expressions(scene.objects, *scene.stuff.shape, index)
            seen |= made.keys()
            for kind, sentences in made.items():
                assert {expression_kind(sentence) for sentence in sentences} == {kind}
    assert seen == set(EXPRESSION_KINDS)
