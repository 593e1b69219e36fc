import pytest

from rose_d2.engine.preemption import DataPositionHook


def run(hook, start_iter, steps):
    """Train some steps; returns the first and the last image seen, as positions."""
    first = hook.start_of_data(start_iter) * hook._per_iteration
    for _ in range(steps):
        hook.after_step()
    return first, first + steps * hook._per_iteration - 1


def resumed(hook, images_per_iteration):
    other = DataPositionHook(images_per_iteration)
    other.load_state_dict(hook.state_dict())
    return other


def test_a_new_run_starts_with_the_first_image():
    assert run(DataPositionHook(8), 0, 3) == (0, 23)


def test_a_resumed_run_goes_on_without_a_word(caplog):
    hook = DataPositionHook(8)
    run(hook, 0, 3)
    assert run(resumed(hook, 8), 3, 2) == (24, 39)
    assert not caplog.text


@pytest.mark.parametrize(("images", "first"), [(4, 24), (16, 16), (5, 20)])
def test_with_other_batches_no_image_is_lost(caplog, images, first):
    hook = DataPositionHook(8)
    run(hook, 0, 3)
    changed = resumed(hook, images)
    assert run(changed, 3, 2) == (first, first + 2 * images - 1)
    assert "after 24 images" in caplog.text and f"{24 - first} images come again" in caplog.text
    assert changed.state_dict() == {"images": first + 2 * images}
    # And once more: the count is of images, not of iterations.
    assert run(resumed(changed, images), 5, 1)[0] == first + 2 * images


def test_a_checkpoint_without_the_number_counts_iterations():
    assert run(DataPositionHook(8), 3, 1) == (24, 31)
