"""Whatever a file holds: a result or one sentence, in bounded time and memory, and nothing outside.

`make fuzz` draws thousands of inputs (FUZZ_INPUTS of them); the ordinary suite draws 300. Of the
kinds that begin with "same" every input means the same as a plain one, and has to be read as that.
"""

import json
import os
import random
import signal
import time

import fuzz_inputs as inputs
import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from fuzz_runner import run_inputs
from scripts import load_script
from toy_training import ToyROSE

from rose_d2.checkpoint.weights import (
    load_weights,
    read_safetensors,
    read_torch_file,
    save_weights,
)
from rose_d2.config.read import read_config
from rose_d2.data.annotations import decode_any, load_labels
from rose_d2.data.datasets.custom import read_class_names, register_custom
from rose_d2.data.datasets.registration import unregister
from rose_d2.evaluation.ground_truth import load_objects
from rose_d2.evaluation.instance import coco_ground_truth, evaluate_coco
from rose_d2.evaluation.predictions import PredictionStore
from rose_d2.structures.mask_codec import encode_masks

NUM_INPUTS = int(os.environ.get("FUZZ_INPUTS", "300"))
NAME = "rose_test_fuzz"


def use_annotations(folder, draw):
    """Register, load, decode for training and for evaluation."""
    path = folder / "ann.json"
    content = inputs.mutate(inputs.annotations(), draw)
    path.write_text(json.dumps(content))
    if draw.random() < 0.2:
        path.write_bytes(inputs.damage(path.read_bytes(), draw))
        content = None
    found = read_objects(folder)
    assert content is None or untouched(content) <= found, "sound objects are lost or changed"


def read_objects(folder):
    """(image, class, mask) of all objects; training and evaluation have to see the same ones."""
    inputs.write_images(folder / "images")
    register_custom([(NAME, "coco", str(folder / "images"), str(folder / "ann.json"))])
    records = DatasetCatalog.get(NAME)
    classes = MetadataCatalog.get(NAME).thing_classes
    coco = coco_ground_truth(records, len(classes))
    assert len(coco.anns) == sum(len(record["annotations"]) for record in records) > 0
    found, answers = set(), []
    for number, record in enumerate(records, start=1):
        regions, _ = decode_any(record, MetadataCatalog.get(NAME), 14)
        assert len(regions) == len(record["annotations"])
        objects = load_objects(record)
        for class_id, mask in zip(objects.classes, objects.masks, strict=True):
            code = encode_masks(mask[None])[0]
            answers.append({"image_id": number, "category_id": class_id + 1, "score": 1.0})
            answers[-1]["segmentation"] = code
            name = os.path.basename(record["file_name"])
            found.add((name, classes[class_id], code["counts"]))
    for annotation in coco.anns.values():
        assert np.isfinite(annotation["bbox"]).all() and annotation["area"] >= 0
        coco.annToMask(annotation)
    drawn = any(code for _, _, code in found)
    if drawn:
        ap = evaluate_coco(coco, answers, "segm").stats[0]
        assert ap == pytest.approx(1) or ap < 0, f"perfect answers have AP {ap}"
    return found


def untouched(content):
    """What `read_objects` finds of the entries that a mutation has left as they were."""
    sound = inputs.annotations()
    parts = [content.get(key) if isinstance(content, dict) else None for key in sound]
    images, annotations, categories = ([] if not isinstance(p, list) else p for p in parts)
    if images != sound["images"] or categories != sound["categories"]:
        return set()
    return {SOUND[sound["annotations"].index(a)] for a in annotations if a in KEPT}


def use_same_annotations(folder, draw):
    content = inputs.said_otherwise(inputs.annotations(), draw)
    (folder / "ann.json").write_bytes(inputs.in_some_encoding(json.dumps(content), draw))
    assert read_objects(folder) == set(SOUND.values())


def use_check_data(folder, draw):
    """The whole program."""
    (folder / "ann.json").write_text(json.dumps(inputs.mutate(inputs.annotations(), draw)))
    inputs.write_images(folder / "images")
    for path in (folder / "images").iterdir():
        if draw.random() < 0.3:
            path.write_bytes(inputs.damage(path.read_bytes(), draw))
    arguments = ["--custom-coco", folder / "images", folder / "ann.json"]
    arguments += ["--left-out", folder / "left_out.csv"]
    status = load_script("tools/check_data.py").main([str(a) for a in arguments])
    assert status in (0, 1)
    if status:
        raise ValueError("refused by its exit status")


def use_label_images(folder, draw):
    """The same of label images."""
    inputs.write_images(folder / "images")
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("wall\nsky: stuff\nbox\n")
    for number in (1, 2):
        inputs.write_label_image(folder / "labels" / f"{number}.png", draw)
    for record in register_labels(folder):
        regions, _ = decode_any(record, MetadataCatalog.get(NAME), 14)
        assert set(regions.classes.tolist()) <= {0, 1, 2}


def register_labels(folder):
    paths = [str(folder / name) for name in ("images", "labels", "classes.txt")]
    register_custom([(NAME, "labels", *paths)])
    return DatasetCatalog.get(NAME)


def use_same_label_images(folder, draw):
    inputs.write_images(folder / "images")
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_bytes(inputs.in_some_encoding("wall\nsky: stuff\nbox\n", draw))
    labels = np.random.default_rng(draw.randrange(2**32)).choice([0, 1, 2, 255], (12, 16))
    for number in (1, 2):
        inputs.save_labels(labels.astype(np.uint8), folder / "labels" / f"{number}.png", draw)
    for record in register_labels(folder):
        assert (load_labels(record, MetadataCatalog.get(NAME)) == labels).all()


def use_class_list(folder, draw):
    path = folder / "classes.names"
    path.write_bytes(inputs.class_list(draw))
    names = read_class_names(path)
    assert names and len(set(names)) == len(names) and all(n == n.strip() and n for n in names)


def use_same_class_list(folder, draw):
    names = draw.sample(["wall", "sign: front", "caf\u00e9", "traffic light", "\u7a7a", "a, b"], 4)
    marks = [draw.choice(["", ": stuff", " : stuff", ":STUFF"]) for _ in names]
    lines = [
        f"{draw.choice(['', ' '])}{n}{m}{draw.choice(['', ' '])}" for n, m in zip(names, marks)
    ]
    text = "\n".join(lines) + draw.choice(["", "\n", "\n\n"])
    (folder / "classes.csv").write_bytes(inputs.in_some_encoding(text, draw))
    assert read_class_names(folder / "classes.csv") == names


def use_config(folder, draw):
    path = folder / "config.yaml"
    path.write_bytes(inputs.config(draw))
    cfg = read_config(str(path))
    assert cfg.TEST.TOP_K >= 1 and cfg.SOLVER.BASE_LR >= 0
    assert all(value > 0 for value in cfg.MODEL.LMM.PIXEL_STD)


def use_same_config(folder, draw):
    """Keys divided among two files, in the block or the flow style of YAML."""
    values = {"SOLVER": {"BASE_LR": 0.1, "IMS_PER_BATCH": 2}, "TEST": {"TOP_K": 4}, "SEED": 1}
    for name, part in (("base.yaml", ["SEED", "TEST"]), ("config.yaml", ["SOLVER"])):
        style = {"default_flow_style": draw.random() < 0.5, "sort_keys": draw.random() < 0.5}
        text = yaml.safe_dump({key: values[key] for key in part}, **style)
        before = "" if name == "base.yaml" else f"_BASE_: {draw.choice(['', './'])}base.yaml\n"
        comment = draw.choice(["", "# a comment\n"])
        content = before + comment + text if not text.startswith("{") else None
        if content is None:
            content = json.dumps(
                {**({"_BASE_": "base.yaml"} if before else {}), **yaml.safe_load(text)}
            )
        (folder / name).write_text(content)
    cfg = read_config(str(folder / "config.yaml"))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (0.1, 2)
    assert (cfg.TEST.TOP_K, cfg.SEED) == (4, 1)


def use_weights(folder, draw):
    path = folder / "model.safetensors"
    model = ToyROSE()
    save_weights(model, str(path))
    inputs.write_weights(path, read_safetensors(str(path))[0], draw)
    load_weights(model, str(path))
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def use_torch_file(folder, draw):
    path = folder / "state.pth"
    torch.save({"a": torch.zeros(3), "b": [1, "x"]}, path)
    path.write_bytes(inputs.damage(path.read_bytes(), draw))
    assert isinstance(read_torch_file(path), dict)


def use_predictions(folder, draw):
    description = {"dataset": "x", "num_samples": 1, "checkpoint_sha256": "0"}
    (folder / "predictions.json").write_text(json.dumps(description))
    line = json.dumps(inputs.mutate(inputs.record(), draw)) + "\n"
    (folder / "process-0000.jsonl").write_text(line)
    store = PredictionStore(folder, None)
    assert all(isinstance(store.get(key), dict) for key in store.keys())  # noqa: SIM118


USES = {
    use.__name__.removeprefix("use_"): use
    for use in (
        *(use_annotations, use_same_annotations, use_check_data),
        *(use_label_images, use_same_label_images, use_class_list, use_same_class_list),
        *(use_config, use_same_config, use_weights, use_torch_file, use_predictions),
    )
}
KEPT: list = []
SOUND: dict = {}


@pytest.fixture(scope="module", autouse=True)
def sound_objects(tmp_path_factory):
    """What the plain annotation file means, by position; its crowd is no object."""
    folder = tmp_path_factory.mktemp("sound")
    everything = inputs.annotations()
    for position, annotation in enumerate(everything["annotations"]):
        if annotation["iscrowd"]:
            continue
        alone = everything | {"annotations": [annotation]}
        (folder / "ann.json").write_text(json.dumps(alone))
        (SOUND[position],) = read_objects(folder)
        KEPT.append(annotation)
    unregister(NAME)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as copies")
@pytest.mark.parametrize("kind", USES)
def test_a_result_or_one_sentence(tmp_path, monkeypatch, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    seeds = [f"{kind} {number}" for number in range(NUM_INPUTS // len(USES))]
    findings = run_inputs(_registered_for_one(USES[kind]), seeds, tmp_path)
    assert not findings.faults, "\n".join(findings.faults[:20])
    assert not list(outside.iterdir())
    assert findings.counts["read"], f"nothing of {kind} is read: the sound input is none"
    assert not (kind.startswith("same") and findings.counts["refused"])
    print(f"{kind}: {findings.counts['read']} of {len(seeds)} read, the others refused")


def _registered_for_one(use):
    def use_and_forget(folder, draw):
        try:
            use(folder, draw)
        finally:
            unregister(NAME)
            unregister("custom")

    return use_and_forget


def crash(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def write_elsewhere(folder):
    (folder.parent / "elsewhere").write_text("")


def start_a_program(folder):
    os.system("true")


def ask_for_memory(folder):
    np.ones(10**9)


def wait(folder):
    time.sleep(60)


def compute(folder):
    while True:
        pass


def fail(folder):
    raise KeyError("x")


def say_nothing(folder):
    raise ValueError


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as copies")
@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (crash, "ended by -11"),
        (write_elsewhere, "elsewhere outside its folder"),
        (start_a_program, "os.system"),
        (ask_for_memory, "MemoryError"),
        (wait, "hung"),
        (compute, "hung"),
        (fail, "KeyError"),
        (say_nothing, "without a sentence"),
    ],
)
def test_every_fault_is_found_and_the_next_input_used(tmp_path, fault, word):
    def use(folder, draw):
        if draw.random() == random.Random("bad").random():
            fault(folder)

    findings = run_inputs(use, ["good", "bad", "sound"], tmp_path, seconds=0.3)
    assert len(findings.faults) == 1 and word in findings.faults[0], findings.faults
    assert findings.counts["read"] == 2
