import numpy as np

from rose_d2.data.candidates import draw_candidates

VOCABULARY = [f"class {i}" for i in range(20)]


def test_names_are_different_and_distractors_are_bounded():
    present = VOCABULARY[:4]
    for seed in range(100):
        names = draw_candidates(present, VOCABULARY, 5, np.random.default_rng(seed))
        assert len(set(names)) == len(names)
        assert 1 <= len(set(names) & set(present)) <= 4
        assert len(set(names) - set(present)) <= 5


def test_about_half_of_the_lists_hold_every_name_of_the_image():
    present = VOCABULARY[:4]
    complete = [
        set(present) <= set(draw_candidates(present, VOCABULARY, 3, np.random.default_rng(seed)))
        for seed in range(200)
    ]
    assert 70 <= sum(complete) <= 130


def test_true_names_are_not_always_first():
    firsts = {
        draw_candidates(["class 0"], VOCABULARY, 5, np.random.default_rng(seed))[0]
        for seed in range(50)
    }
    assert len(firsts) > 5


def test_an_empty_image_gets_distractors_only():
    for seed in range(20):
        assert draw_candidates([], VOCABULARY, 5, np.random.default_rng(seed))
    assert len(draw_candidates([], VOCABULARY, 0, np.random.default_rng(0))) == 1


def test_same_generator_state_same_list():
    lists = [draw_candidates(["a"], VOCABULARY, 9, np.random.default_rng(3)) for _ in range(2)]
    assert lists[0] == lists[1]
