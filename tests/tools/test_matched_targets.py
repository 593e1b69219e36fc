import json

import pytest


@pytest.fixture
def tool(load_tool):
    return load_tool("matched_targets")


def test_a_random_model_is_measured_at_the_targets_patches(tool, two_scenes, saved_model, capsys):
    tool.main(["--config-file", saved_model, "--dataset", two_scenes])
    summary = json.loads(capsys.readouterr().out)
    assert summary["targets"] > 0
    assert 0 < summary["mask_iou"] < 100
    assert summary["name_exact"] == 0


def test_weights_that_are_not_there_are_named(tool, two_scenes, saved_model):
    options = ["--config-file", saved_model, "--dataset", two_scenes]
    with pytest.raises(SystemExit, match="matched_targets.py: error: .*nowhere"):
        tool.main([*options, "MODEL.WEIGHTS", "nowhere"])
