import json

import pytest
from scripts import load_script


@pytest.fixture
def tool():
    return load_script("tools/matched_targets.py")


def test_a_random_model_is_measured_at_the_targets_patches(tool, two_scenes, saved_model, capsys):
    tool.main(["--config-file", saved_model, "--dataset", two_scenes])
    summary = json.loads(capsys.readouterr().out)
    assert summary["targets"] > 0
    assert 0 < summary["mask_iou"] < 100
    assert summary["name_exact"] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["MODEL.WEIGHTS", "nowhere"], "nowhere"),
        (["MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
    ],
)
def test_wrong_settings_are_named(tool, two_scenes, saved_model, refusal, wrong, message):
    options = ["--config-file", saved_model, "--dataset", two_scenes]
    sentence = refusal(tool, [*options, *wrong])
    assert sentence.startswith("matched_targets.py: error: ") and message in sentence


def test_an_unknown_dataset_is_refused_before_the_model_is_built(tool, refusal):
    options = ["--config-file", "nowhere.yaml", "--dataset", "clipart_panoptic_vall"]
    assert "not registered; near are clipart_panoptic_val" in refusal(tool, options)
