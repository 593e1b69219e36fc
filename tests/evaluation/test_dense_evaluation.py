import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from rose_d2.evaluation.dense_evaluation import (
    RoseCOCOEvaluator,
    RosePanopticEvaluator,
    RoseSemSegEvaluator,
)


def _evaluate(evaluator, scenes, kind, outputs):
    evaluator.reset()
    for sample in scenes.dicts[kind]:
        evaluator.process([sample], [copy.deepcopy(outputs[sample["image_id"]])])
    return evaluator.evaluate()


def _things_only(outputs):
    things = {}
    for image_id, output in outputs.items():
        instances = output["instances"]
        things[image_id] = {"instances": instances[instances.pred_classes < 2]}
    return things


class TestCOCO:
    def _run(self, scenes, outputs, **options):
        evaluator = RoseCOCOEvaluator(
            scenes.names["coco"], ("bbox", "segm"), use_fast_impl=False, **options
        )
        return _evaluate(evaluator, scenes, "coco", outputs)

    def test_ground_truth_scores_100(self, scenes, perfect):
        results = self._run(scenes, _things_only(perfect))
        assert results["segm"]["AP"] == pytest.approx(100)
        assert results["bbox"]["AP"] == pytest.approx(100)
        assert results["segm"]["AP-cat"] == pytest.approx(100)

    def test_unmapped_names_neither_crash_nor_count(self, scenes, perfect):
        outputs = _things_only(perfect)
        for output in outputs.values():
            wrong = copy.deepcopy(output["instances"])
            wrong.pred_classes[:] = -1
            wrong.scores += 0.05
            output["instances"] = type(wrong).cat([wrong, output["instances"]])
        assert self._run(scenes, outputs)["segm"]["AP"] == pytest.approx(100)

    def test_a_prediction_on_the_crowd_is_not_an_error(self, scenes, perfect, instances_from):
        outputs = _things_only(perfect)
        crowd = instances_from(scenes.ids[1], [(scenes.ids[1] == 14, "dog", 0, 0.99)])
        outputs[1]["instances"] = type(crowd).cat([crowd, outputs[1]["instances"]])
        assert self._run(scenes, outputs)["segm"]["AP"] == pytest.approx(100)

    def test_a_better_scored_false_positive_costs_half_a_class(
        self, scenes, perfect, instances_from
    ):
        outputs = _things_only(perfect)
        grass = instances_from(scenes.ids[2], [(scenes.ids[2] == 20, "dog", 0, 0.99)])
        outputs[2]["instances"] = type(grass).cat([grass, outputs[2]["instances"]])
        results = self._run(scenes, outputs)
        assert results["segm"]["AP-dog"] == pytest.approx(50)
        assert results["segm"]["AP-cat"] == pytest.approx(100)

    def test_a_doubtful_name_ranks_behind_a_certain_one(self, scenes, perfect, instances_from):
        outputs = _things_only(perfect)
        grass = instances_from(scenes.ids[2], [(scenes.ids[2] == 20, "dog", 0, 0.99)])
        grass.name_scores = torch.tensor([-2.0])
        for output in outputs.values():
            output["instances"].name_scores = torch.zeros(len(output["instances"]))
        outputs[2]["instances"] = type(grass).cat([grass, outputs[2]["instances"]])
        before = outputs[2]["instances"].scores.clone()
        assert self._run(scenes, outputs)["segm"]["AP-dog"] == pytest.approx(100)
        assert outputs[2]["instances"].scores.equal(before)
        by_objectness = self._run(scenes, outputs, rank_by_name=False)
        assert by_objectness["segm"]["AP-dog"] == pytest.approx(50)

    def test_no_prediction_is_zero(self, scenes, instances_from):
        outputs = {i: {"instances": instances_from(ids, [])} for i, ids in scenes.ids.items()}
        results = self._run(scenes, outputs)
        assert results["segm"]["AP"] == 0 and results["bbox"]["AP"] == 0


class TestSemSeg:
    def _run(self, scenes, outputs, **options):
        evaluator = RoseSemSegEvaluator(scenes.names["sem_seg"], **options)
        return _evaluate(evaluator, scenes, "sem_seg", outputs)["sem_seg"]

    def test_ground_truth_scores_100(self, scenes, perfect):
        results = self._run(scenes, perfect)
        for metric in ("mIoU", "fwIoU", "mACC", "pACC", "IoU-sky"):
            assert results[metric] == pytest.approx(100)
        assert results["no_object"] == 0 and results["unmapped"] == 0
        assert not any("oundary" in key or "B-Iou" in key for key in results)

    def test_no_object_is_a_missed_pixel_not_an_ignored_one(self, scenes, perfect):
        perfect[1]["sem_seg"][-1, :, :30] = 2.0
        ids = scenes.ids[1]
        results = self._run(scenes, perfect)
        # Sky occurs in scene 1 only: what is left of it is its IoU and its accuracy.
        expected = 100 * (ids[:, 30:] == 10).sum() / (ids == 10).sum()
        assert results["IoU-sky"] == pytest.approx(expected)
        assert results["ACC-sky"] == pytest.approx(expected)
        labelled = {i: np.isin(ids, [10, 11, 12, 13, 20, 21, 22]) for i, ids in scenes.ids.items()}
        share = 100 * labelled[1][:, :30].sum() / sum(mask.sum() for mask in labelled.values())
        assert results["no_object"] == pytest.approx(share)
        assert results["pACC"] == pytest.approx(100 - share)
        assert not any("no object" in key for key in results)

    def test_miou_by_an_independent_formula(self, scenes, perfect):
        generator = torch.Generator().manual_seed(0)
        matrix = np.zeros((5, 5))
        for image_id, output in perfect.items():
            output["sem_seg"] = torch.rand(output["sem_seg"].shape, generator=generator)
            with Image.open(scenes.dicts["sem_seg"][image_id - 1]["sem_seg_file_name"]) as image:
                truth = np.asarray(image)
            answer = output["sem_seg"].argmax(dim=0).numpy()
            for t in range(4):
                for a in range(5):
                    matrix[a, t] += ((answer == a) & (truth == t)).sum()
        hits = np.diag(matrix)[:4]
        predicted_on_labelled = matrix.sum(axis=1)[:4]
        ious = hits / (matrix.sum(axis=0)[:4] + predicted_on_labelled - hits)
        assert self._run(scenes, perfect)["mIoU"] == pytest.approx(100 * ious.mean(), abs=1e-9)

    def test_without_any_score_nothing_crashes(self, scenes, perfect):
        for output in perfect.values():
            output["sem_seg"].zero_()
        assert 0 <= self._run(scenes, perfect)["mIoU"] < 20

    def test_no_object_everywhere_scores_zero(self, scenes, perfect):
        for output in perfect.values():
            output["sem_seg"][-1] = 2.0
        results = self._run(scenes, perfect)
        assert results["mIoU"] == 0 and results["no_object"] == 100

    def test_share_of_unmapped_mask_pixels(self, scenes, perfect):
        instances = perfect[2]["instances"]
        instances.pred_classes[1:] = -1
        unmapped = np.isin(scenes.ids[2], [21, 22]).sum()
        total = scenes.ids[2].size + np.isin(scenes.ids[1], [10, 11, 12, 13]).sum()
        expected = 100 * unmapped / total
        assert self._run(scenes, perfect)["unmapped"] == pytest.approx(expected)

    def test_predictions_are_written_without_no_object(self, scenes, perfect, tmp_path):
        perfect[2]["sem_seg"][-1, :, :2] = 2.0
        self._run(scenes, perfect, output_dir=str(tmp_path / "out"))
        entries = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
        assert {entry["category_id"] for entry in entries} == {1, 2, 3, 4}
        assert len(entries) == 4 + 2

    def test_an_unknown_label_on_disk_is_named(self, scenes, perfect):
        path = scenes.dicts["sem_seg"][0]["sem_seg_file_name"]
        with Image.open(path) as image:
            labels = np.array(image)
        labels[0, 0] = 77
        Image.fromarray(labels).save(path)
        with pytest.raises(ValueError, match=r"\[77\].*0 to 3.*255"):
            self._run(scenes, perfect)


class TestPanoptic:
    def _run(self, scenes, outputs):
        evaluator = RosePanopticEvaluator(scenes.names["coco_panoptic_seg"])
        return _evaluate(evaluator, scenes, "coco_panoptic_seg", outputs)["panoptic_seg"]

    def test_ground_truth_scores_100(self, scenes, perfect):
        results = self._run(scenes, perfect)
        assert results["PQ"] == pytest.approx(100)
        assert results["PQ_th"] == pytest.approx(100) and results["PQ_st"] == pytest.approx(100)

    def test_unmapped_and_vanished_segments_become_void(self, scenes, perfect):
        ids, segments = perfect[1]["panoptic_seg"]
        segments[0]["category_id"] = -1  # the only sky
        segments.append({"id": 99, "category_id": 0, "isthing": True})  # without a pixel
        results = self._run(scenes, perfect)
        # Sky: one missed, PQ 0; dog, cat and grass stay perfect.
        assert results["PQ"] == pytest.approx(75)
        assert results["PQ_th"] == pytest.approx(100) and results["PQ_st"] == pytest.approx(50)
        assert (ids == 10).any(), "the caller's id map must stay as it was"

    def test_wrong_class_by_hand(self, scenes, perfect):
        for segment in perfect[2]["panoptic_seg"][1]:
            if segment["id"] == 21:
                segment["category_id"] = 0
        # cat: 2 right, 1 missed -> 2 / 2.5; dog: 1 right, 1 false -> 1 / 1.5.
        results = self._run(scenes, perfect)
        assert results["PQ_th"] == pytest.approx(100 * (2 / 2.5 + 1 / 1.5) / 2)

    def test_no_prediction_is_zero(self, scenes, perfect):
        for output in perfect.values():
            output["panoptic_seg"] = torch.zeros_like(output["panoptic_seg"][0]), []
        assert self._run(scenes, perfect)["PQ"] == 0
