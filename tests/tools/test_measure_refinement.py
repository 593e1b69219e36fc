import json

import pytest
from scripts import load_script


@pytest.fixture
def tool():
    return load_script("tools/measure_refinement.py")


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


def test_a_measurement_without_weights_is_refused(tool, two_scenes, saved_model, refusal):
    options = ["--config-file", saved_model, "--dataset", two_scenes, "MODEL.WEIGHTS", ""]
    assert "error: MODEL.WEIGHTS is empty" in refusal(tool, options)


def test_a_measurement_without_seeds_is_refused(tool, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["--config-file", "x.yaml", "--seeds", "0"])
    assert "--seeds must be at least 1" in capsys.readouterr().err
