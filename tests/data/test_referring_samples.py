import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rose_d2.data.build import build_rose_test_loader, load_test_dicts
from rose_d2.data.datasets.refer_files import ALL_SENTENCES, referring_samples, sample_key


def _dict(ref_id, sent_id, sentence, target=0):
    return {
        "image_id": ref_id // 10,
        "annotations": ANNOTATIONS,
        "target_indices": [target],
        "ref_id": ref_id,
        "sent_id": sent_id,
        "sentence": sentence,
    }


ANNOTATIONS = [{"category_id": 0}]
SENTENCES = [
    _dict(12, 40, "left dog"),
    _dict(12, 41, "the dog on the left"),
    _dict(11, 38, "cat", target=1),
    _dict(12, 39, "brown one"),
]


def test_per_sentence_takes_the_dicts_as_they_are():
    samples = referring_samples(SENTENCES, "per_sentence")
    assert samples == SENTENCES and samples is not SENTENCES
    assert [sample_key(s) for s in samples] == [(12, 40), (12, 41), (11, 38), (12, 39)]


def test_per_ref_puts_all_sentences_of_a_reference_in_one_sample():
    dog, cat = referring_samples(SENTENCES, "per_ref")
    assert [sample_key(dog), sample_key(cat)] == [(12, ALL_SENTENCES), (11, ALL_SENTENCES)]
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
        ("per_sentence", [(8, 9), (8, 10)], "What is the dog on the left in this"),
        ("per_ref", [(8, -1)], "What is the dog on the left. left dog. in this"),
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
