"""The contract with detectron2 and transformers: their own code on our model and our files."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.modeling import build_model
from PIL import Image
from transformers import AutoProcessor, pipeline

from rose_d2.checkpoint.weights import save_weights
from rose_d2.layers.views import model_views

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def same(first, second):
    assert torch.equal(first["instances"].pred_masks, second["instances"].pred_masks)
    assert torch.equal(first["instances"].scores, second["instances"].scores)
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
        (ours,) = model([{**own, **{k: asked[k] for k in ("task", "conversation")}}])
    assert asked["task"] == "panoptic" and plain["panoptic_seg"][0].shape == (40, 60)
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
