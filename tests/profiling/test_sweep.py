"""One axis varies at a time."""

from rose_d2.profiling import sweep as module
from rose_d2.profiling.sweep import sweep


def test_each_point_is_measured_at_its_place(tiny_cfg, monkeypatch):
    asked = []

    def measured(cfg, batch_size, num_steps, image_size):
        asked.append((cfg.TEST.TOP_K, image_size, batch_size, num_steps))
        return len(asked)

    monkeypatch.setattr(module, "measure_inference", measured)
    points = sweep(tiny_cfg, 3)
    assert {axis: [value for value, _ in line] for axis, line in points.items()} == {
        "objects": [1, 10, 30, 100],
        "megapixels": [0.3, 3, 12, 48],
        "images in a batch": [1, 2, 4, 8],
    }
    assert [top_k for top_k, _, _, _ in asked[:4]] == [1, 10, 30, 100]
    assert asked[7] == (30, (6000, 8000), 1, 3)
    assert asked[11] == (30, (480, 640), 8, 3)
