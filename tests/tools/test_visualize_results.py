"""From a folder of saved predictions to a page, and one sentence for every bad input."""

from pathlib import Path

import pytest
import yaml
from scripts import load_script

from rose_d2.evaluation.predictions import PredictionStore

SCRIPT = Path(__file__).parents[2] / "tools" / "visualize_results.py"


@pytest.fixture
def tool():
    return load_script(SCRIPT)


@pytest.fixture
def custom(tmp_path):
    """Predictions on custom data, whose config lies beside them."""
    import json

    import numpy as np
    import torch
    from detectron2.structures import Boxes, Instances
    from PIL import Image

    from rose_d2.structures.category_names import CategoryNames

    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "area": 100,
        "bbox": [0, 0, 10, 10],
        "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]],
    }
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "dog"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    folder = tmp_path / "predictions" / "my_dogs"
    store = PredictionStore(folder, {"dataset": "my_dogs"})
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[:, :10, :10] = True
    instances = Instances(
        (20, 30),
        pred_masks=mask,
        pred_boxes=Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]])),
        scores=torch.tensor([0.9]),
        pred_classes=torch.tensor([0]),
        pred_category_names=CategoryNames(["dog"]),
    )
    store.add("1", {"instances": instances}, "instance")
    store.close()
    declared = [["my_dogs", "coco", str(tmp_path), str(tmp_path / "a.json")]]
    (folder / "config.yaml").write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": declared}}))
    yield tmp_path / "predictions"
    from rose_d2.data.datasets.registration import unregister

    unregister("my_dogs")


def test_page_of_custom_data_from_the_folder_of_all_predictions(tool, custom, tmp_path, capsys):
    output = tmp_path / "new" / "page.html"
    tool.main([str(custom), "--output", str(output)])
    assert "1 predictions on my_dogs" in capsys.readouterr().out
    assert "100.0 %" in output.read_text("utf-8")
    assert [path.name for path in output.parent.iterdir()] == ["page.html"]


def test_bad_folders(tool, custom, tmp_path, refusal):
    page = tmp_path / "page.html"
    (tmp_path / "empty").mkdir()
    empty = refusal(tool, [tmp_path / "empty", "--output", page])
    assert empty.startswith("visualize_results.py: error: No predictions in")
    other = refusal(tool, [custom, "--dataset", "my_cats", "--output", page])
    assert "No predictions of my_cats" in other
    assert "there are my_dogs" in other
    PredictionStore(custom / "more", {"dataset": "more"})
    assert "predictions of more, my_dogs; name one" in refusal(tool, [custom, "--output", page])
    assert not page.exists()


def test_image_missing(tool, custom, tmp_path, refusal):
    (tmp_path / "a.png").unlink()
    message = refusal(tool, [custom, "--output", tmp_path / "page.html"])
    assert "lists images that" in message and "first" in message


@pytest.mark.parametrize("argv", [["--num", "0"], ["--output", "."]])
def test_bad_arguments(tool, custom, argv, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args([str(custom), "--output", "page.html", *argv])
    assert "error:" in capsys.readouterr().err
