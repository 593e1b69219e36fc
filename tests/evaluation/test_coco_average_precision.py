"""AP against an independent implementation, and one library against the other."""

import time
from collections import defaultdict

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rose_d2.evaluation.instance import (
    FASTER,
    OFFICIAL,
    COCOeval_faster,
    evaluate_coco,
    installed_implementation,
    repair_annotations,
)

IMPLEMENTATIONS = [OFFICIAL, *([FASTER] if COCOeval_faster else [])]


def plain_average_precision(images, num_classes, max_dets=100):
    """101-point AP over ten thresholds in percent, from boolean masks."""
    averages = []
    for class_id in range(num_classes):
        for threshold in np.linspace(0.5, 0.95, 10):
            records, positives = [], 0
            for objects, predictions in images:
                truth = [mask for mask, c, crowd in objects if c == class_id and not crowd]
                crowds = [mask for mask, c, crowd in objects if c == class_id and crowd]
                ours = sorted((p for p in predictions if p[1] == class_id), key=lambda p: -p[2])
                positives += len(truth)
                free = dict(enumerate(truth))
                for mask, _, score in ours[:max_dets]:
                    ious = {k: (t & mask).sum() / (t | mask).sum() for k, t in free.items()}
                    best = max(ious, key=lambda k: (ious[k], k), default=None)
                    area = max(mask.sum(), 1)
                    if best is not None and ious[best] >= threshold:
                        del free[best]
                        records.append((score, 1))
                    elif not any((t & mask).sum() / area >= threshold for t in crowds):
                        records.append((score, 0))
            if positives:
                hits = np.array([hit for _, hit in sorted(records, key=lambda r: -r[0])])
                found = np.cumsum(hits)
                precision, recall = found / np.arange(1, len(hits) + 1), found / positives
                points = [precision[recall >= r] for r in np.linspace(0, 1, 101)]
                averages.append(np.mean([p.max() if len(p) else 0.0 for p in points]))
    return 100 * np.mean(averages)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_an_independent_implementation_agrees(random_instances, seed, implementation):
    truth, results, images = random_instances(seed)
    options = {"implementation": implementation}
    coco_eval = evaluate_coco(truth, results, "segm", **options)
    expected = plain_average_precision(images, 3)
    assert 5 < expected < 90
    assert 100 * coco_eval.stats[0] == pytest.approx(expected, abs=1e-9)
    few = evaluate_coco(truth, results, "segm", max_dets=1, **options)
    expected = plain_average_precision(images, 3, max_dets=1)
    assert 100 * few.stats[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.skipif(COCOeval_faster is None, reason="faster-coco-eval is not installed")
class TestFaster:
    @pytest.mark.parametrize("iou_type", ["bbox", "segm"])
    @pytest.mark.parametrize("max_dets", [2, 100, 200])
    def test_both_agree_in_every_number(self, random_instances, iou_type, max_dets):
        for seed in range(5):
            truth, results, _ = random_instances(seed, num_images=12)
            ours, theirs = (
                evaluate_coco(truth, results, iou_type, max_dets=max_dets, implementation=name)
                for name in (FASTER, OFFICIAL)
            )
            for metric in range(12):
                assert ours.stats[metric] == pytest.approx(theirs.stats[metric], abs=1e-12)
            precision = np.asarray(ours.eval["precision"])
            assert precision.shape == theirs.eval["precision"].shape
            np.testing.assert_allclose(precision, theirs.eval["precision"], rtol=0, atol=1e-12)

    @pytest.mark.slow
    def test_it_is_faster(self, random_instances):
        truth, results, _ = random_instances(0, num_images=300, num_classes=30)
        seconds = defaultdict(list)
        for _ in range(3):
            for name in (FASTER, OFFICIAL):
                start = time.process_time()
                evaluate_coco(truth, results, "segm", implementation=name)
                seconds[name].append(time.process_time() - start)
        assert min(seconds[FASTER]) < min(seconds[OFFICIAL])


def test_the_faster_one_is_taken_where_it_is_installed(monkeypatch):
    assert installed_implementation() == IMPLEMENTATIONS[-1]
    monkeypatch.setattr("rose_d2.evaluation.instance.COCOeval_faster", None)
    assert installed_implementation() == OFFICIAL


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_broken_files_are_repaired(random_instances, implementation):
    """Object 0, no iscrowd, no area, an annotation without a mask, one of another size."""
    truth, _, _ = random_instances(1)
    annotations = truth.dataset["annotations"]
    annotations[:] = [a for a in annotations if not a["iscrowd"]]
    perfect = [{**annotation, "score": 0.9} for annotation in annotations]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number
        del annotation["iscrowd"], annotation["area"]
    small = {"size": [4, 4], "counts": [16]}
    broken = [
        {**annotations[0], "id": 900 + k, "segmentation": s} for k, s in enumerate(([], small))
    ]
    annotations.extend([*broken, {**annotations[0], "id": 902, "image_id": 77}])
    truth.createIndex()
    assert repair_annotations(truth) == 3
    assert 0 not in truth.anns and len(truth.anns) == len(perfect)
    assert truth.anns[1]["area"] == perfect[0]["area"]
    coco_eval = evaluate_coco(truth, perfect, "segm", implementation=implementation)
    assert coco_eval.stats[0] == pytest.approx(1)


def test_sizes_are_those_of_the_masks(random_instances):
    """A false positive of 100 pixels in a box of 10 000 is an error among the small objects."""
    truth, _, _ = random_instances(0, num_images=1, size=(100, 100))
    diagonal = np.eye(100, dtype=bool)
    first, second = coco_mask.encode(
        np.asfortranarray(np.stack([diagonal, diagonal[::-1]], axis=2), dtype=np.uint8)
    )
    entry = {"id": 1, "image_id": 1, "category_id": 3, "area": 100, "iscrowd": 0}
    entry |= {"bbox": [0, 0, 100, 100], "segmentation": first}
    truth.dataset["annotations"] = [entry]
    truth.createIndex()
    results = [{**entry, "score": 0.5}, {**entry, "segmentation": second, "score": 0.9}]
    coco_eval = evaluate_coco(truth, results, "segm")
    assert coco_eval.stats[3] == pytest.approx(0.5)  # small
    assert coco_eval.stats[5] == -1  # large
