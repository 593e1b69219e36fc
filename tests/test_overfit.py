"""The model can learn: a handful of scenes by heart, masks and names."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.clipart import load_clipart
from rose_d2.evaluation.matched_targets import evaluate_matched_targets
from rose_d2.synthetic.clipart import BenchmarkSettings, write_benchmark

NUM_SCENES = 3
STEPS = 260


@pytest.fixture
def batch(tiny_cfg, tmp_path):
    """Three clip-art scenes with their panoptic targets."""
    sizes = {"train": NUM_SCENES, "val": 1, "val_unseen": 1}
    settings = BenchmarkSettings(seed=5, num_scenes=sizes)
    write_benchmark(settings, tmp_path / "clipart", num_workers=1)
    tiny_cfg.INPUT.FLIP_PROB = tiny_cfg.INPUT.CANDIDATE_PROB = 0.0
    mapper = RoseDatasetMapper(tiny_cfg, is_train=True)
    records = load_clipart(tmp_path, "panoptic", "train")
    return [mapper(record, np.random.default_rng(0)) for record in records]


@pytest.mark.slow
def test_three_scenes_are_learnt_by_heart(tiny_cfg, batch):
    torch.manual_seed(0)
    for sizes in (tiny_cfg.MODEL.LMM.VISION_CONFIG, tiny_cfg.MODEL.LMM.TEXT_CONFIG):
        sizes.hidden_size, sizes.intermediate_size = 64, 128
    model = build_model(tiny_cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    totals = []
    for _ in range(STEPS):
        with EventStorage():
            total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(float(total))
    assert np.mean(totals[-5:]) < totals[0] / 8
    learnt = evaluate_matched_targets(model.eval(), [batch]).summary()
    assert learnt["name_exact"] >= 90
    assert learnt["mask_iou"] >= 60
    with torch.no_grad():
        outputs = model(batch)
    for item, output in zip(batch, outputs, strict=True):
        found = set(output["open_instances"].pred_category_names)
        assert found, "nothing was found at all"
        assert len(found & set(item["instances"].gt_category_names)) >= len(found) / 2
