"""Refined results are never mistaken for those of the first turn."""

from rose_d2.reports.record import measured_levels
from rose_d2.reports.report import first_turn, headline_numbers, refinement_section

TASKS = {
    "sem_seg": {"mIoU": 50.0, "IoU-dog": 40.0},
    "sem_seg_before": {"mIoU": 44.0, "IoU-dog": 30.0},
    "sem_seg_gain": {"mIoU": 6.0, "IoU-dog": 10.0},
    "sem_seg_levels_before": {"exact": 43.0, "normalised": 44.0},
    "refinement": {
        "number": 3.0,
        "number-mask": 2.0,
        "number-category": 1.0,
        "number-missed": 0.0,
        "mean_iou_before": 20.0,
        "mean_iou_after": 30.0,
        "share_worse": 33.0,
        "share_better": 67.0,
    },
}
PLAIN = {"sem_seg": {"mIoU": 44.0}, "names": {"recall": 90.0}}


def test_first_turn_takes_the_results_before_refinement():
    assert first_turn(TASKS) == {
        "sem_seg": TASKS["sem_seg_before"],
        "sem_seg_levels": TASKS["sem_seg_levels_before"],
    }


def test_results_without_refinement_stay_as_they_are():
    assert first_turn(PLAIN) == PLAIN
    assert refinement_section(PLAIN) == []


def test_the_headline_is_the_first_turn():
    assert headline_numbers(TASKS) == [("sem_seg", "mIoU", 44.0)]


def test_levels_are_found_where_refinement_is_on():
    assert measured_levels(TASKS) == ["exact", "normalised"]


def test_the_section_shows_before_after_gain_and_says_what_chose_the_regions():
    title, scores, regions = refinement_section(TASKS)
    assert title == "### Refinement (situations chosen with ground truth)"
    assert "| sem\\_seg | mIoU | 44.00 | 50.00 | 6.00 |" in scores
    assert "IoU-dog" not in scores
    assert "| mask | 2 |" in regions and "| all | 3 | 20.00 | 30.00 |" in regions
    assert "67.00 % lie better" in regions and "33.00 % worse" in regions


def test_answers_to_expressions_are_refined_without_ground_truth():
    tasks = {"referring_gain": {"cIoU": 1.0}, "referring": {}, "referring_before": {}}
    title = refinement_section(tasks | {"refinement": {}})[0]
    assert title == "### Refinement (every answer refined, no ground truth used)"
