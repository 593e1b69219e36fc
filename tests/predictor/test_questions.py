import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from rose_d2.modeling.patch_analyzer import ROLES, STUFF_ROLE
from rose_d2.predictor.questions import merge_by_name, segments_from_output
from rose_d2.structures.category_names import CategoryNames
from rose_d2.structures.segments import Segment

SMALL_ROLE = ROLES.index("small")


def rows(*chosen, height=4, width=3):
    mask = np.zeros((height, width), dtype=bool)
    mask[list(chosen)] = True
    return mask


def instances(*entries):
    """Entries of (mask, name, score, name score, role)."""
    masks, names, scores, name_scores, roles = zip(*entries, strict=True)
    return Instances(
        (4, 3),
        pred_masks=torch.from_numpy(np.stack(masks)),
        pred_category_names=CategoryNames(names),
        scores=torch.tensor(scores),
        name_scores=torch.tensor(name_scores),
        pred_roles=torch.tensor(roles),
    )


def test_instances_keep_names_scores_and_kind():
    found = instances(
        (rows(0), "dog", 0.75, 1.0, SMALL_ROLE),
        (rows(1, 2), "grass", 0.5, 0.25, STUFF_ROLE),
        (rows(), "nothing", 0.5, 1.0, SMALL_ROLE),
        (rows(3), "cat", 0.25, 1.0, SMALL_ROLE),
    )
    segments = segments_from_output({"instances": found}, "instance", min_score=0.3)
    assert [s.category_name for s in segments] == ["dog", "grass"]
    assert [s.score for s in segments] == [0.75, 0.5]
    assert [s.is_thing for s in segments] == [True, False]
    assert segments[1].name_score == pytest.approx(0.25)
    assert (segments[1].mask == rows(1, 2)).all()


def test_panoptic_segments_come_from_the_map_and_its_infos():
    ids = torch.zeros(4, 3, dtype=torch.int32)
    ids[0], ids[2] = 1, 2

    def info(number, name, score, is_thing, name_score):
        return {
            "id": number,
            "category_id": -1,
            "isthing": is_thing,
            "category_name": name,
            "score": score,
            "name_score": name_score,
        }

    infos = [
        info(1, "dog", 0.9, True, 0.5),
        info(2, "sky", 0.6, False, 1.0),
        info(3, "hidden", 0.5, True, 1.0),
    ]
    segments = segments_from_output({"panoptic_seg": (ids, infos)}, "panoptic")
    assert [s.category_name for s in segments] == ["dog", "sky"]
    assert (segments[0].mask == rows(0)).all()
    assert [s.name_score for s in segments] == [0.5, 1.0]
    assert [s.is_thing for s in segments] == [True, False]


def test_referring_answers_however_unsure():
    found = instances((rows(2), "dog", 0.01, 0.0, SMALL_ROLE))
    segments = segments_from_output({"instances": found}, "referring", min_score=0.5)
    assert [s.category_name for s in segments] == ["dog"]


def test_semantic_merges_a_name_and_gives_pixels_to_the_better_one():
    merged = merge_by_name(
        [
            Segment(rows(0, 1), "grass", 0.5, 0.9, False),
            Segment(rows(1, 2), "dog", 0.8, 0.7, True),
            Segment(rows(3), "grass", 0.9, 0.3, False),
            Segment(rows(1), "hidden", 0.1),
        ]
    )
    assert [(s.category_name, s.score, s.name_score) for s in merged] == [
        ("grass", 0.9, 0.3),
        ("dog", 0.8, 0.7),
    ]
    assert (merged[0].mask == rows(0, 3)).all()
    assert (merged[1].mask == rows(1, 2)).all()
    assert merge_by_name([]) == []


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match="'boxes'"):
        segments_from_output({}, "boxes")
