"""configs/rose_tiny_lora.yaml: the 7B recipe from its bases to its export, on the shipped model."""

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from scripts import load_script

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.checkpoint.weights import read_safetensors
from rose_d2.config.read import read_config
from rose_d2.engine.optimizer import build_optimizer

SCRIPT = Path(__file__).parents[1] / "tools" / "export_checkpoint.py"
CONFIG = "configs/rose_tiny_lora.yaml"
TRAINED = {"patch_embed", "embed_tokens", "lm_head", "lora", "heads", "sam_mask_decoder"}
FROZEN = {"vision_tower", "projector", "language_model", "sam_image_encoder", "sam_prompt_encoder"}


@pytest.fixture(scope="module")
def tool():
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def bases(tool, tmp_path_factory):
    """The command at the top of the config."""
    folder = tmp_path_factory.mktemp("tiny") / "bases"
    args = ["--weights", "checkpoints/rose_tiny", "--kind", "bases", "--output", str(folder)]
    assert tool.main(["--config-file", "configs/rose_tiny.yaml", *args]) == 0
    return folder


@pytest.fixture
def opts(bases):
    return [
        *("MODEL.LMM.PRETRAINED", str(bases / "lmm")),
        *("MODEL.MASK_HEAD.SAM_CHECKPOINT", str(bases / "sam.pth")),
        *("MODEL.DEVICE", "cpu", "MODEL.LMM.IMAGE_SIZE", "84"),
    ]


def one_step(cfg, model, inputs):
    """Two updates, since LoRA's first matrix has no gradient while its second is zero."""
    optimizer = build_optimizer(cfg, model.train())
    for _ in range(2):
        with EventStorage():
            losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()


def test_it_trains_what_the_7b_recipe_trains():
    tiny, large = read_config(CONFIG), read_config("configs/rose_7b.yaml")
    assert tiny.MODEL.LORA == large.MODEL.LORA
    assert tiny.MODEL.TRAINABLE == large.MODEL.TRAINABLE
    assert tiny.MODEL.LMM.GRADIENT_CHECKPOINTING == large.MODEL.LMM.GRADIENT_CHECKPOINTING
    assert tiny.MODEL.LMM.ATTENTION == large.MODEL.LMM.ATTENTION


@pytest.mark.slow
def test_from_bases_over_training_to_the_export(tool, opts, make_input, tmp_path, capsys):
    cfg = read_config(CONFIG, opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    parts = {name: parameters for name, parameters in model.parts().items() if parameters}
    assert set(model.trainable_parts()) == TRAINED and set(parts) == TRAINED | FROZEN
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prior = torch.zeros(1, 84, 84)
    prior[:, 20:60, 20:60] = 1
    one_step(cfg, model, [make_input(prior_mask=prior), make_input("panoptic")])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    # SAM decodes one mask a prompt: the heads of its other three outputs get gradients of zero.
    idle = {name for name in trained if re.search(r"hypernetworks_mlps\.[123]\.", name)}
    assert changed == trained - idle

    RoseCheckpointer(model, str(tmp_path / "run")).save("model_final")
    weights = tmp_path / "run" / "model_final"
    state, metadata = read_safetensors(str(weights / "model.safetensors"))
    parameters = {name for name, _ in model.named_parameters()}
    assert set(state) & parameters == trained
    assert set(json.loads(metadata["base_revisions"])) == {"backbone.model", "mask_head"}

    output = tmp_path / "exported"
    command = ["--config-file", CONFIG, "--weights", str(weights), "--output", str(output)]
    assert tool.main([*command, "--opts", *opts]) == 0
    assert "same token_logits after loading it again" in capsys.readouterr().out
    assert tool.main([*command, "--opts", *opts]) == 1
    assert "exists already" in capsys.readouterr().err


def test_what_computes_something_else_is_reported(tool, opts, bases, tmp_path, monkeypatch, capsys):
    model = build_model(read_config(CONFIG, opts))
    RoseCheckpointer(model, str(tmp_path)).save("model_final")
    merged = tool.export_merged

    def forget_a_channel(cfg, model, *args):
        model.backbone.vision_tower.embeddings.patch_embedding.weight.data[0, 0] += 1
        merged(cfg, model, *args)

    monkeypatch.setattr(tool, "export_merged", forget_a_channel)
    args = ["--weights", str(tmp_path / "model_final"), "--output", str(tmp_path / "exported")]
    assert tool.main(["--config-file", CONFIG, *args, "--opts", *opts]) == 1
    assert "do not use it" in capsys.readouterr().err
    assert tool.main(["--config-file", CONFIG, *args[2:], "--weights", "x", "--opts", *opts]) == 1
    assert "No weights at" in capsys.readouterr().err
