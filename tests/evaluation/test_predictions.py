import json

import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances

from rose_d2.data.build import sample_key
from rose_d2.evaluation.predictions import (
    PredictionStore,
    best_labels,
    decode_output,
    encode_output,
)
from rose_d2.structures.category_names import CategoryNames

FINGERPRINT = {"dataset": "toy", "num_samples": 3, "checkpoint_sha256": "ab"}


def make_output(seed=0, size=(13, 17), count=3):
    """Every field a model writes, with awkward numbers."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, size, generator=generator, dtype=torch.int16)
    instances = Instances(
        size,
        pred_masks=torch.rand(count, *size, generator=generator) > 0.5,
        pred_boxes=Boxes(torch.rand(count, 4, generator=generator) * 17),
        scores=torch.rand(count, generator=generator),
        pred_classes=torch.randint(-1, 5, (count,), generator=generator),
        mapped_classes=torch.randint(-1, 5, (count,), generator=generator),
        mapping_rules=torch.randint(0, 9, (count,), generator=generator),
        pred_category_names=CategoryNames(["dog", 'a "quoted" \\ name', "café\n"][:count]),
        name_scores=torch.tensor([0.0, 1e-30, 0.9])[:count],
        pred_roles=torch.arange(count),
        pred_patches=torch.arange(count) * 7,
    )
    return {
        "instances": instances[:1],
        "open_instances": instances,
        "metadata": Metadata(thing_classes=["dog"]),
        "sem_seg": torch.rand(6, *size, generator=generator),
        "panoptic_seg": (
            labels.int(),
            [{"id": 1, "isthing": True, "score": 0.1 + 0.2, "name_score": 0.7}],
        ),
        "ref_seg": labels > 2,
        "ref_patch": 5,
        "ref_score": 1 / 3,
        "text": "There are 2 dogs.",
    }


def through_json(output, task="panoptic"):
    return decode_output(json.loads(json.dumps(encode_output(output, task))))


def assert_equal_instances(found, given):
    assert found.image_size == given.image_size
    assert set(found.get_fields()) == set(given.get_fields())
    for name, value in given.get_fields().items():
        other = found.get(name)
        if isinstance(value, Boxes):
            value, other = value.tensor, other.tensor
        if isinstance(value, torch.Tensor):
            assert other.dtype == value.dtype and torch.equal(other, value), name
        else:
            assert other == value, name


def test_every_number_survives():
    output = make_output()
    found = through_json(output)
    assert_equal_instances(found["open_instances"], output["open_instances"])
    assert torch.equal(found["sem_seg_labels"], output["sem_seg"].argmax(dim=0).short())
    assert not {"sem_seg", "instances", "metadata"} & set(found)
    assert torch.equal(found["panoptic_seg"][0], output["panoptic_seg"][0])
    assert found["panoptic_seg"][0].dtype == torch.int32
    assert found["panoptic_seg"][1] == output["panoptic_seg"][1]
    assert torch.equal(found["ref_seg"], output["ref_seg"])
    assert [found[k] for k in ("ref_patch", "ref_score", "text")] == [5, 1 / 3, "There are 2 dogs."]


def test_an_output_without_predictions_survives():
    nothing = make_output(count=0)["open_instances"]
    output = {"instances": nothing, "ref_seg": torch.zeros(4, 5).bool()}
    found = through_json(output, "referring")
    assert_equal_instances(found["open_instances"], nothing)
    assert torch.equal(found["ref_seg"], output["ref_seg"])


def test_levels_are_written_once_and_shared_again():
    first, second = ({"sem_seg_labels": make_output(s)["ref_seg"].short()} for s in (1, 2))
    levels = {"exact": first, "normalised": first, "synonym": second}
    output = {"sem_seg_labels": second["sem_seg_labels"].clone(), "levels": levels}
    record = encode_output(output, "semantic")
    assert len(record["levels"]) == 2
    assert record["sem_seg_labels"] == {"level": "synonym"}
    found = through_json(output, "semantic")
    assert list(found["levels"]) == ["exact", "normalised", "synonym"]
    assert found["levels"]["exact"] is found["levels"]["normalised"]
    assert found["levels"]["exact"] is not found["levels"]["synonym"]
    assert torch.equal(found["sem_seg_labels"], second["sem_seg_labels"])
    assert torch.equal(found["levels"]["exact"]["sem_seg_labels"], first["sem_seg_labels"])


def test_panoptic_levels_are_matched_with_the_headline():
    segments = make_output()["panoptic_seg"]
    output = {"panoptic_seg": segments, "levels": {"exact": {"panoptic_seg": segments}}}
    assert encode_output(output, "panoptic")["panoptic_seg"] == {"level": "exact"}
    found = through_json(output)
    assert found["panoptic_seg"] is found["levels"]["exact"]["panoptic_seg"]


def test_best_labels_pass_over_empty_channels():
    scores = torch.zeros(3, 1, 3)
    scores[:, 0] = torch.tensor([[0.0, 0.2, 0.0], [0.0, 0.0, 0.0], [0.0, 0.1, 0.3]])
    assert best_labels(scores).tolist() == [[0, 0, 2]]
    assert best_labels(torch.zeros(3, 1, 1)).tolist() == [[0]]


def test_what_has_no_place_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'heat' is a set"):
        encode_output({"heat": {1}}, "instance")


@pytest.mark.parametrize(
    ("sample", "key"),
    [
        ({"image_id": 7}, "7"),
        ({"image_id": "ADE_1"}, "ADE_1"),
        ({"image_id": 7, "ref_id": 3, "sent_id": 9}, "3-9"),
        ({"image_id": 7, "ref_id": 3, "sent_id": -1}, "3--1"),
    ],
)
def test_keys(sample, key):
    assert sample_key(sample) == key


def fill(folder, keys, fingerprint=FINGERPRINT):
    store = PredictionStore(folder, fingerprint)
    for key in keys:
        store.add(key, {"ref_patch": int(key)}, "referring")
    store.close()
    return folder / "process-0000.jsonl"


def test_a_store_is_continued(tmp_path):
    fill(tmp_path, ["1", "2"])
    fill(tmp_path, ["3"])
    store = PredictionStore(tmp_path, FINGERPRINT)
    assert store.keys() == ["1", "2", "3"] and "2" in store and "4" not in store
    assert [store.get(key)["ref_patch"] for key in "123"] == [1, 2, 3]
    assert store.record("3")["task"] == "referring"


def test_what_was_just_added_can_be_read(tmp_path):
    store = PredictionStore(tmp_path, FINGERPRINT)
    store.add("1", {"ref_patch": 1}, "referring")
    assert store.get("1") == {"ref_patch": 1}


@pytest.mark.parametrize("lost", [1, 5, 40])
def test_a_half_written_line_is_run_again(tmp_path, lost):
    path = fill(tmp_path, ["1", "2"])
    path.write_bytes(path.read_bytes()[:-lost])
    assert PredictionStore(tmp_path, FINGERPRINT).keys() == ["1"]
    fill(tmp_path, ["2"])
    store = PredictionStore(tmp_path, FINGERPRINT)
    assert store.get("2") == {"ref_patch": 2} and len(path.read_bytes().splitlines()) == 2


def test_a_damaged_line_inside_is_reported(tmp_path):
    path = fill(tmp_path, ["1", "2"])
    path.write_bytes(b'{"key": broken\n' + path.read_bytes())
    with pytest.raises(ValueError, match=r"Line 1 of .*process-0000\.jsonl is damaged"):
        PredictionStore(tmp_path, FINGERPRINT)


def test_files_of_other_processes_are_read(tmp_path, monkeypatch):
    fill(tmp_path, ["1"])
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 3)
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    fill(tmp_path, ["2"])
    names = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert names == ["process-0000.jsonl", "process-0003.jsonl"]
    assert PredictionStore(tmp_path, None).keys() == ["1", "2"]


def test_another_fingerprint_is_refused_with_its_difference(tmp_path):
    fill(tmp_path, ["1"])
    other = {**FINGERPRINT, "checkpoint_sha256": "cd", "TEST.TOP_K": 5}
    with pytest.raises(ValueError, match=r"checkpoint_sha256: 'ab', now 'cd'; TEST\.TOP_K: None"):
        PredictionStore(tmp_path, other)
    assert len(PredictionStore(tmp_path, FINGERPRINT)) == 1
    assert len(PredictionStore(tmp_path, other, overwrite=True)) == 0
    assert PredictionStore(tmp_path, None).fingerprint == other


def test_a_folder_without_predictions_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--save-predictions"):
        PredictionStore(tmp_path, None)
