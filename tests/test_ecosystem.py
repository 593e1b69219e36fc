"""The contract with detectron2, panopticapi and transformers: their code on our model and files."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    SemSegEvaluator,
    inference_on_dataset,
)
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.visualizer import Visualizer
from fvcore.nn import flop_count_table
from panopticapi.combine_semantic_and_instance_predictions import combine_to_panoptic_single_core
from panopticapi.utils import IdGenerator, rgb2id
from PIL import Image
from pycocotools import mask as coco_mask
from scripts import ROOT, load_script, run_script
from transformers import AutoProcessor, pipeline

from rose_d2.checkpoint.weights import save_weights
from rose_d2.data.datasets import ade20k, clipart
from rose_d2.layers.logit_masks import LogitMasks
from rose_d2.layers.views import model_views
from rose_d2.predictor.predictor import RosePredictor
from rose_d2.structures.category_names import CategoryNames

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def same(first, second):
    one, other = first["open_instances"], second["open_instances"]
    assert len(one) and torch.equal(one.pred_masks, other.pred_masks)
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(first["panoptic_seg"][0], second["panoptic_seg"][0])


def test_an_image_alone_is_asked_the_default_question(tiny_cfg, tiny_model, make_input):
    model = tiny_model.eval()
    image = torch.from_numpy(np.ascontiguousarray(PIXELS.transpose(2, 0, 1)))
    with torch.no_grad():
        (plain,) = model([{"image": image}])
        (sized,) = model([{"image": image.float(), "height": 40, "width": 60}])
        lmm, sam = model_views(
            PIXELS, tiny_cfg.MODEL.LMM.IMAGE_SIZE, tiny_cfg.MODEL.MASK_HEAD.IMAGE_SIZE
        )
        asked = model.stock_inputs.complete({"image": image})
        own = {"image": lmm, "sam_image": sam, "height": 40, "width": 60}
        words = {key: asked[key] for key in ("task", "conversation", "dataset_name")}
        (ours,) = model([{**own, **words}])
    assert asked["task"] == "panoptic" and plain["panoptic_seg"][0].shape == (40, 60)
    assert asked["dataset_name"] == tiny_cfg.DATASETS.TEST[0]
    same(plain, sized)
    same(plain, ours)
    complete = make_input()
    assert model.stock_inputs.complete(complete) is complete


def test_channels_come_in_the_order_of_the_config(tiny_cfg):
    tiny_cfg.INPUT.FORMAT = "BGR"
    model = build_model(tiny_cfg)
    image = torch.zeros(3, 84, 84, dtype=torch.uint8)
    image[0] = 255  # blue
    assert model.stock_inputs.complete({"image": image})["image"][2].min() == 255


@pytest.mark.parametrize("task", ["referring", "refinement", "nothing"])
def test_a_default_question_needs_no_words_of_its_own(tiny_cfg, task):
    tiny_cfg.INPUT.DEFAULT_TASK = task
    with pytest.raises(ValueError, match=task):
        build_model(tiny_cfg)


def test_stock_training_batches_are_one_sentence(tiny_model):
    with pytest.raises(ValueError, match=r"no conversation: .* mapper=RoseDatasetMapper\(cfg\)"):
        tiny_model.train()([{"image": torch.zeros(3, 84, 84), "instances": None}])


def test_detectron2s_predictor_answers(tiny_cfg, tiny_model, tmp_path):
    save_weights(tiny_model, str(tmp_path / "model.safetensors"))
    torch.save({"model": tiny_model.state_dict()}, tmp_path / "model.pth")
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    tiny_cfg.DATASETS.TEST = ()
    output = DefaultPredictor(tiny_cfg)(PIXELS[:, :, ::-1])  # BGR, as OpenCV reads
    assert output["panoptic_seg"][0].shape == (40, 60)
    assert output["instances"].image_size == (40, 60)


# What the model is made to see: the hand-made scenes, and something no class is named after.
SEEN = {
    (40, 60): [("dog", 12), ("cat", 13), ("sky", 10), ("grass", 11), ("purple chair", None)],
    (50, 30): [("cats", 21), ("cat", 22), ("grass", 20), ("purple chair", None)],
}


@pytest.fixture
def seeing_model(scenes, tiny_model, monkeypatch):
    """A model that draws and names what is annotated in the scenes, and a purple chair in each."""
    truth = {ids.shape: ids for ids in scenes.ids.values()}

    def masks(shape):
        chair = np.zeros(shape, dtype=bool)
        chair[3:9, 1:7] = True
        return [chair if i is None else truth[shape] == i for _, i in SEEN[shape]]

    def upscale(low_res_masks, view, size):
        drawn = masks(tuple(size))
        rows = [drawn[row % len(drawn)] for row in range(len(low_res_masks))]
        return LogitMasks(torch.from_numpy(np.stack(rows)) * 40.0 - 20.0)

    model = tiny_model.eval()
    settings = dataclasses.replace(model.inference.settings, score_thresh=0.0)
    model.inference.settings = dataclasses.replace(settings, panoptic_score_thresh=0.0)
    spell = model.inference.category_decoder.generate

    def generate(embeddings, trie=None):
        decoded = spell(embeddings, trie)
        (shape,) = [shape for shape, seen in SEEN.items() if len(seen) == len(embeddings)]
        decoded.names = CategoryNames([name for name, _ in SEEN[shape]])
        return decoded

    monkeypatch.setattr(model.mask_head, "upscale", upscale)
    monkeypatch.setattr(model.inference.category_decoder, "generate", generate)
    return model


def read_labels(file_name, dtype):
    """detectron2's own reader asks NumPy 2 for what it refuses."""
    with Image.open(file_name) as image:
        return np.array(image, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "task", "make_evaluator", "perfect"),
    [
        ("coco", "panoptic", COCOEvaluator, {"bbox": "AP", "segm": "AP"}),
        ("coco", "instance", COCOEvaluator, {"bbox": "AP", "segm": "AP"}),
        ("coco_panoptic_seg", "panoptic", COCOPanopticEvaluator, {"panoptic_seg": "PQ"}),
        ("sem_seg", "semantic", SemSegEvaluator, {"sem_seg": "mIoU"}),
    ],
)
def test_detectron2s_evaluators_take_raw_answers(
    scenes, tiny_cfg, seeing_model, tmp_path, kind, task, make_evaluator, perfect
):
    """With detectron2's own loader and loop; names that fit no class are in the answers too."""
    tiny_cfg.DATASETS.TEST, tiny_cfg.INPUT.DEFAULT_TASK = (scenes.names[kind],), task
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    stock = build_model(tiny_cfg).stock_inputs
    seeing_model.stock_inputs = stock
    options = {"sem_seg_loading_fn": read_labels} if make_evaluator is SemSegEvaluator else {}
    evaluator = make_evaluator(scenes.names[kind], output_dir=str(tmp_path), **options)
    loader = build_detection_test_loader(tiny_cfg, scenes.names[kind])
    with torch.no_grad():
        answers = [output for item in loader for output in seeing_model(item)]
    found = [set(output["open_instances"].pred_category_names) for output in answers]
    assert all("purple chair" in names for names in found)
    results = inference_on_dataset(seeing_model, loader, evaluator)
    assert {key: results[key][name] for key, name in perfect.items()} == pytest.approx(
        dict.fromkeys(perfect, 100.0)
    )


def drawn_texts(picture):
    return sorted(text.get_text().rsplit(" ", 1)[0] for text in picture.ax.texts)


def see(model, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    with torch.no_grad():
        (output,) = model([{"image": pixels}])
    return image, output


@pytest.mark.parametrize("shape", list(SEEN))
def test_detectron2s_visualizer_shows_the_open_names(tiny_cfg, seeing_model, shape):
    tiny_cfg.DATASETS.TEST = ()
    seeing_model.stock_inputs = build_model(tiny_cfg).stock_inputs
    image, output = see(seeing_model, shape)
    names = sorted(name for name, _ in SEEN[shape])
    picture = Visualizer(image, output["metadata"])
    assert drawn_texts(picture.draw_instance_predictions(output["instances"])) == names
    picture = Visualizer(image, output["metadata"]).draw_panoptic_seg(*output["panoptic_seg"])
    shown = {text.get_text().removesuffix("%").rstrip(" 0123456789") for text in picture.ax.texts}
    assert shown == {info["category_name"] for info in output["panoptic_seg"][1]} <= {*names}


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_detectron2s_visualizer_shows_the_classes_of_a_dataset(
    scenes, tiny_cfg, seeing_model, task
):
    tiny_cfg.DATASETS.TEST = (scenes.names["coco_panoptic_seg"],)
    tiny_cfg.INPUT.DEFAULT_TASK = task
    seeing_model.stock_inputs = build_model(tiny_cfg).stock_inputs
    image, output = see(seeing_model, (40, 60))
    metadata = MetadataCatalog.get(scenes.names["coco_panoptic_seg"])
    picture = Visualizer(image, metadata).draw_instance_predictions(output["instances"])
    assert drawn_texts(picture) == ["cat", "dog"]
    picture = Visualizer(image, metadata)
    if task == "panoptic":
        picture = picture.draw_panoptic_seg(*output["panoptic_seg"])
    else:
        picture = picture.draw_sem_seg(output["sem_seg"].argmax(dim=0))
    shown = {text.get_text().split(" ")[0] for text in picture.ax.texts}
    assert shown == {"dog", "cat", "sky", "grass"}


def test_detectron2s_analysis_counts_flops(tiny_model):
    """The calls of its tools/analyze_model.py for `--tasks flop`."""
    image = torch.from_numpy(np.ascontiguousarray(PIXELS.transpose(2, 0, 1)))
    flops = FlopCountAnalysis(tiny_model.eval(), [{"image": image}])
    assert flops.total() > 1e6 and flops.by_operator()["linear"] > 1e6
    table = flop_count_table(flops)
    assert all(f"| {part} " in table for part in ("backbone", "patch_analyzer", "mask_head"))


@pytest.mark.parametrize(
    "categories", [ade20k.panoptic_categories(), clipart.coco_categories(with_stuff=True)]
)
def test_panopticapi_takes_written_categories(categories, tmp_path):
    """What its converters and its visualisation do with them."""
    by_id = {category["id"]: category for category in categories}
    thing = next(i for i, category in by_id.items() if category["isthing"])
    stuff = next(i for i, category in by_id.items() if not category["isthing"])
    ids = IdGenerator(by_id)
    colours = [tuple(ids.get_id_and_color(i)[1]) for i in (thing, thing, stuff)]
    assert len(set(colours)) == 3 and colours[2] == tuple(by_id[stuff]["color"])
    left = np.zeros((4, 6), dtype=np.uint8, order="F")
    left[:, :3] = 1
    rle = {i: coco_mask.encode(np.asfortranarray(m)) for i, m in ((thing, left), (stuff, 1 - left))}
    segments = {i: [{"category_id": i, "segmentation": rle[i]}] for i in rle}
    image = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}
    (annotation,) = combine_to_panoptic_single_core(
        0, [1], {1: image}, {1: segments[thing]}, {1: segments[stuff]}, str(tmp_path), 0.5, 0, by_id
    )
    png = rgb2id(np.array(Image.open(tmp_path / "a.png")))
    written = {info["category_id"]: info["id"] for info in annotation["segments_info"]}
    assert (png[:, :3] == written[thing]).all() and (png[:, 3:] == written[stuff]).all()


def test_detectron2s_trainer_trains(tiny_cfg, make_input, tmp_path):
    """With the loader and the type of clipping that the README names."""

    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return itertools.repeat([make_input(), make_input("panoptic")])

    tiny_cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    tiny_cfg.SOLVER.MAX_ITER, tiny_cfg.DATASETS.TEST = 2, ()
    tiny_cfg.OUTPUT_DIR = str(tmp_path)
    trainer = Trainer(tiny_cfg)
    before = trainer.model.mask_head.mask_decoder.mask_tokens.weight.clone()
    trainer.train()
    assert trainer.iter == 2
    assert not torch.equal(trainer.model.mask_head.mask_decoder.mask_tokens.weight, before)


@pytest.mark.slow
def test_an_exported_language_model_is_transformers_own(exported):
    folder = str(exported / "lmm")
    modes = {file.name: file.stat().st_mode & 0o044 for file in (exported / "lmm").iterdir()}
    expected = exported.stat().st_mode & 0o044
    assert set(modes.values()) == {expected}, modes
    processor = AutoProcessor.from_pretrained(folder)
    answer = pipeline("image-text-to-text", model=folder, processor=processor)
    content = [{"type": "image", "image": Image.fromarray(PIXELS)}]
    content.append({"type": "text", "text": "Segment the dog."})
    (turns,) = answer(text=[{"role": "user", "content": content}], max_new_tokens=2)
    assert turns["generated_text"][-1]["role"] == "assistant"


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    return load_script("demo/demo.py")


def check_weights(config, weights, folder, status=0):
    """What `train_net.py --check` says of weights."""
    where = ("--config-file", config, "--check", "--eval-only")
    opts = ("MODEL.WEIGHTS", weights, "DATASETS.TEST", "()", "OUTPUT_DIR", folder / "out")
    return run_script("train_net.py", *where, *opts, output=folder / "said.txt", status=status)


@pytest.mark.slow
def test_programs_take_the_language_model_of_an_export_alike(exported, tiny_cfg, demo, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "pictures" / "a.png")
    config = exported / "config.yaml"
    asked = ["--config-file", str(config), "--input", str(tmp_path / "pictures")]

    def run_demo(weights, name):
        folder = tmp_path / name
        opts = ["MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", "cpu"]
        if demo.main([*asked, "--output", str(folder), *opts]):
            return "failed"
        return json.loads((folder / "predictions.json").read_text())["annotations"]

    def predict(weights):
        tiny_cfg.MODEL.WEIGHTS = str(weights)
        return RosePredictor(tiny_cfg)(PIXELS)

    same(predict(exported), predict(exported / "lmm"))
    assert run_demo(exported, "whole") == run_demo(exported / "lmm", "part") != "failed"
    for weights in (exported, exported / "lmm"):
        said = check_weights(config, weights, tmp_path)
        assert str(exported / "model.safetensors") in said
    alone = shutil.copytree(exported / "lmm", tmp_path / "alone")
    with pytest.raises(ValueError, match="language model alone counts as that"):
        predict(alone)
    assert run_demo(alone, "alone") == "failed"
    said = check_weights(config, alone, tmp_path, status=1)
    assert str(alone) in said and "language model alone counts as that" in said
