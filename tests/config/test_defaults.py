"""Every key is read and explained, and every shipped config builds."""

import functools
import re
from pathlib import Path

import pytest
import torch
from config_reads import config_reads
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY

import rose_d2  # noqa: F401
from rose_d2.config.defaults import add_rose_config
from rose_d2.data.mixture import training_weights

CONFIGS = sorted(Path("configs").rglob("*.yaml"))


def load(path):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def build_on_meta(cfg):
    """The model without memory and without downloads."""
    cfg.MODEL.LMM.PRETRAINED = ""
    cfg.MODEL.LMM.TOKENIZER = "tiny"
    cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT = ""
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get("ROSE")(cfg)


def added_keys():
    """Dotted names of the keys that ROSE adds to detectron2's config."""
    plain, ours = get_cfg(), get_cfg()
    add_rose_config(ours)

    def leaves(node, prefix=()):
        for key, value in node.items():
            if isinstance(value, CfgNode) and value:
                yield from leaves(value, (*prefix, key))
            else:
                yield ".".join((*prefix, key))

    return sorted(set(leaves(ours)) - set(leaves(plain)))


# What measures, plans and reports repeats keys; that is no use of them.
NO_USE = ("config", "profiling", "reports")


@functools.cache
def used_keys():
    """Dotted names of the keys that the product reads."""
    rooms = [room for room in Path("rose_d2").iterdir() if room.name not in NO_USE]
    files = [Path("train_net.py"), *(file for room in rooms for file in room.rglob("*.py"))]
    read, whole = config_reads(file.read_text(encoding="utf-8") for file in files)
    return read | {key for key in added_keys() if any(key.startswith(f"{g}.") for g in whole)}


@pytest.mark.parametrize("key", added_keys())
def test_every_key_is_read(key):
    is_read = key in used_keys()
    assert is_read, f"{key} is declared but nobody reads it"


def test_every_key_that_is_read_is_declared():
    cfg = get_cfg()
    add_rose_config(cfg)
    for key in used_keys():
        try:
            functools.reduce(getattr, key.split("."), cfg)
        except AttributeError:
            pytest.fail(f"{key} is read but not declared")


READERS = """
def from_config(cls, cfg: CfgNode):
    test, head = cfg.TEST, cfg.MODEL.MASK_HEAD
    cfg.TEST.WRITTEN = 1
    if test.GUARD:
        raise ValueError(f"TEST.TOLD is {test.TOLD}")
    lora = cfg.MODEL.LORA if cfg.MODEL.LORA.ENABLED else None
    return {"mean": head.PIXEL_MEAN, "lora": cfg.MODEL.LORA, "rates": dict(cfg.RATES.items())}

def add(lora: CfgNode, test, self):
    return lora.RANK, test.OTHER, self.cfg.clone().SEED
"""


def test_reads_are_found_under_their_full_names():
    read, whole = config_reads([READERS])
    keys = {"TEST.GUARD", "MODEL.MASK_HEAD.PIXEL_MEAN", "MODEL.LORA.ENABLED", "MODEL.LORA.RANK"}
    groups = {"TEST", "MODEL.MASK_HEAD", "MODEL.LORA", "RATES"}
    assert read == keys | groups | {"SEED"}
    assert whole == {"RATES"}


def test_a_parameter_that_receives_two_groups_is_refused():
    caller = "add(lora=cfg.MODEL.LMM)"
    with pytest.raises(ValueError, match="lora receives several groups"):
        config_reads([READERS, caller])


def test_every_key_has_a_comment():
    """A comment stands above each key, or above the block of keys it belongs to."""
    key = re.compile(r"\s+cfg\.[A-Z_.]+ = ")
    lines = Path("rose_d2/config/defaults.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(key.match(line)) for line in lines) > 100
    for number, line in enumerate(lines):
        if not key.match(line) or line.endswith("= CN()"):
            continue
        above = number - 1
        while key.match(lines[above]) and not lines[above].endswith("= CN()"):
            above -= 1
        assert lines[above].lstrip().startswith("#"), f"no comment above {line.strip()!r}"


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_config_loads_and_names_registered_datasets(path):
    cfg = load(path)
    assert cfg.MODEL.META_ARCHITECTURE == "ROSE"
    assert training_weights(cfg)
    assert set(cfg.DATASETS.TEST) <= set(DatasetCatalog.list())


# Hand-checked against the official parameter counts; heads and patch embedding by arithmetic.
EXPECTED = {
    "rose_7b": {
        # (4 channels x 14 x 14 + bias) x 1152
        "patch_embed": (785 * 1152, True),
        # 397 747 744 of Hugging Face's tower, less its 3-channel patch embedding (589 x 1152),
        # the unused last layer norm (2 x 1152) and the projector's image_newline is not in it.
        "vision_tower": (397_747_744 - 589 * 1152 - 2 * 1152, False),
        "projector": (16_980_992, False),
        "embed_tokens": (152128 * 3584, True),
        "lm_head": (152128 * 3584, True),
        "language_model": (7_070_848_512 - 152128 * 3584, False),
        "lora": (20_185_088, True),
        "sam_image_encoder": (637_026_048, False),
        "sam_prompt_encoder": (256, False),
        # less what no output depends on: the head for predicted IoU, three of four for masks
        "sam_mask_decoder": (
            4_058_340
            - (2 * (256 * 256 + 256) + 256 * 4 + 4)
            - 3 * (2 * (256 * 256 + 256) + 256 * 32 + 32),
            True,
        ),
        # objectness, mask, category, SigLIP projectors and one vector per role
        "heads": (
            4 * (3584 * 3584 + 3584) + 3585 * (1 + 256 + 3584 + 1152) + 5 * 3584,
            True,
        ),
    },
    "rose_0p5b": {
        "projector": (1_836_800, False),
        "embed_tokens": (152000 * 896, True),
        "language_model": (494_090_112 - 152000 * 896, False),
        "lora": (4_399_104, True),
        "sam_image_encoder": (89_670_912, False),
    },
}


@pytest.mark.parametrize("name", ["rose_7b", "rose_0p5b"])
def test_large_configs_build_with_the_right_parts(name):
    model = build_on_meta(load(f"configs/{name}.yaml"))
    parts = model.parts()
    for part, (count, trains) in EXPECTED[name].items():
        parameters = [parameter for _, parameter in parts[part]]
        assert sum(p.numel() for p in parameters) == count, part
        assert {p.requires_grad for p in parameters} == {trains}, part
    assert model.backbone.grid.num_patches == 2304
    assert model.backbone.is_tied == (name == "rose_0p5b")
    assert (parts["lm_head"] == []) == (name == "rose_0p5b")


def test_tiny_config_trains_everything():
    model = build_on_meta(load("configs/rose_tiny.yaml"))
    parts = {name: p for name, p in model.parts().items() if p}
    assert set(model.trainable_parts()) == set(parts)
    assert sum(p.numel() for part in parts.values() for _, p in part) < 5_000_000
