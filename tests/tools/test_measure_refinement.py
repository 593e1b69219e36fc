import json

import pytest


@pytest.fixture
def tool(load_tool):
    return load_tool("measure_refinement")


def test_a_random_model_is_measured_on_two_scenes(tool, two_scenes, saved_model, capsys):
    options = ["--config-file", saved_model, "--dataset", two_scenes]
    tool.main([*options, "--num", "2", "--seeds", "2", "TEST.IMS_PER_BATCH", "4"])
    table, start, rest = capsys.readouterr().out.partition("{")
    result = json.loads(start + rest)
    assert (result["images"], result["seeds"]) == (2, 2)
    mean, spread = result["mask"]["iou_before"]
    assert 50 <= mean <= 70 and spread > 0
    assert result["missed"]["iou_before"] == [0, 0]
    assert "mask" in table and f"{mean:.1f} ± {spread:.1f}" in table


def test_a_measurement_without_weights_is_refused(tool, two_scenes, saved_model):
    options = ["--config-file", saved_model, "--dataset", two_scenes, "MODEL.WEIGHTS", ""]
    with pytest.raises(SystemExit, match="error: MODEL.WEIGHTS is empty"):
        tool.main(options)


def test_a_measurement_without_seeds_is_refused(tool, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["--config-file", "x.yaml", "--seeds", "0"])
    assert "--seeds must be at least 1" in capsys.readouterr().err
