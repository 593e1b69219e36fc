import pytest
from detectron2.config import CfgNode

from rose_d2.config.ranges import RANGES, Choice, Range
from rose_d2.config.read import read_config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "-0.1"),
        ("SOLVER.BASE_LR", "1e400"),
        ("SOLVER.LR_SCHEDULER_NAME", "Mystery"),
        ("SOLVER.CHECKPOINT_KEEP", "-1"),
        ("TEST.TOP_K", "0"),
        ("MODEL.LMM.PIXEL_STD", "[0.0, 1.0, 1.0]"),
        ("MODEL.LMM.PIXEL_STD", "[1.0, 1.0]"),
        ("MODEL.LMM.PIXEL_STD", "['a', 1.0, 1.0]"),
        ("INPUT.FLIP_PROB", "1.5"),
        ("MODEL.ROSE.NEGATIVES_RANDOM", "-1"),
        ("MODEL.ROSE.LOSS_WEIGHT.MASK_BCE", "-1.0"),
        ("SOLVER.GAMMA", "float('nan')"),
        ("SEED", "99999999999"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_key(key, value):
    with pytest.raises(ValueError, match=rf"{key}( is .*; allowed is |.*Type mismatch)"):
        read_config("configs/rose_tiny.yaml", [key, value])


def test_a_refusal_says_what_is_allowed():
    assert Range(0, 1).refusal(2) == "from 0 to 1"
    assert Range(0, open_below=True, numbers=3).refusal([0, 1, 1]) == "3 numbers above 0"
    assert Range(-1).refusal(True) == "from -1"
    assert Choice(("a", "b")).refusal("c") == "one of 'a', 'b'"
    assert not Range(0, 1).refusal(1) and not Choice((1, 2)).refusal(2)


def test_the_table_names_keys_that_exist():
    cfg = read_config("configs/rose_tiny.yaml")
    for name in RANGES:
        node = cfg
        for part in name.removesuffix("*").rstrip(".").split("."):
            if not name.endswith("*") or part in node:
                node = node[part]
        assert not isinstance(node, CfgNode) or name.endswith("*"), name
