import math
import os
import pickle

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from scripts import load_script
from toy_training import ToyROSE, seed_all, toy_config, toy_item

from rose_d2.engine.non_finite import NonFiniteGuard, read_step_dump, write_step_dump
from rose_d2.prompts.conversation import Conversation
from rose_d2.structures.category_names import CategoryNames

FINE = {"loss_text": 1.0, "loss_mask_dice": 2.0}
BROKEN = {"loss_text": 1.0, "loss_mask_dice": math.nan}


def batch(*indices):
    return [toy_item(index) for index in indices]


def make_guard(tmp_path, max_skips=0, model=None):
    cfg = toy_config(tmp_path, "SOLVER.MAX_SKIPPED_STEPS", max_skips)
    return NonFiniteGuard.from_config(cfg, model or ToyROSE())


def inspect(guard, *losses, grad_norm=1.0, iteration=7):
    batches = [batch(2 * index, 2 * index + 1) for index in range(len(losses))]
    return guard.inspect(iteration, losses, grad_norm, batches)


def test_finite_steps_pass(tmp_path):
    assert inspect(make_guard(tmp_path), FINE, FINE) is False
    assert not (tmp_path / "non_finite").exists()


def test_first_nan_stops_by_default_and_names_terms_rank_and_images(tmp_path):
    with pytest.raises(FloatingPointError) as error:
        inspect(make_guard(tmp_path), FINE, BROKEN)
    message = str(error.value)
    assert "at iteration 7: loss_mask_dice = nan on rank 0" in message
    assert "images 000002.jpg, 000003.jpg" in message
    assert "loss_text" not in message and "000001.jpg" not in message
    assert str(tmp_path / "non_finite" / "iter_0000007") in message
    assert "updates in a row" not in message


def test_so_many_in_a_row_are_skipped_and_a_finite_step_starts_anew(tmp_path, caplog):
    guard = make_guard(tmp_path, max_skips=2)
    with EventStorage() as storage:
        decisions = [inspect(guard, losses) for losses in (BROKEN, BROKEN, FINE, BROKEN, BROKEN)]
    assert decisions == [True, True, False, True, True]
    assert "skipped (2 in a row of at most 2, 4 since the start)" in caplog.text
    assert storage.latest()["skipped_steps"][0] == 4
    assert not (tmp_path / "non_finite").exists()
    with pytest.raises(FloatingPointError, match="2 updates in a row were skipped"):
        inspect(guard, BROKEN)


def test_infinite_gradient_names_the_parameters_it_is_in(tmp_path):
    model = ToyROSE()
    model.head.weight.grad = torch.full_like(model.head.weight, math.inf)
    model.head.bias.grad = torch.ones_like(model.head.bias)
    with pytest.raises(FloatingPointError) as error:
        inspect(make_guard(tmp_path, model=model), FINE, grad_norm=math.inf)
    message = str(error.value)
    assert "every loss is finite, in head.weight. Images of this step: 000000.jpg" in message


def test_overflow_that_loss_scaling_deals_with_is_left_to_it(tmp_path):
    guard = make_guard(tmp_path)
    assert inspect(guard, FINE, grad_norm=None) is False
    with pytest.raises(FloatingPointError):
        inspect(guard, BROKEN, grad_norm=None)


def test_negative_number_of_skips_is_refused(tmp_path):
    with pytest.raises(ValueError, match="MAX_SKIPPED_STEPS is -1"):
        make_guard(tmp_path, max_skips=-1)


def test_a_dump_that_cannot_be_written_does_not_hide_the_error(tmp_path, caplog):
    (tmp_path / "non_finite").write_text("in the way")
    with pytest.raises(FloatingPointError, match="loss_mask_dice = nan.*could not be written"):
        inspect(make_guard(tmp_path), BROKEN)
    assert "Could not write the dump" in caplog.text


@pytest.fixture
def stopped_step(tmp_path):
    """A step of a model that draws random numbers, in which one image's loss is infinite."""
    seed_all(0)
    model = ToyROSE().train()
    guard = make_guard(tmp_path, model=model)
    seed_all(5)
    guard.begin_step()
    broken = batch(2, 3)
    broken[1]["loss_weight"] = math.inf
    batches, micro_losses = [batch(0, 1), broken], []
    for batched_inputs in batches:
        losses = model(batched_inputs)
        sum(losses.values()).backward()
        micro_losses.append({name: loss.item() for name, loss in losses.items()})
    with pytest.raises(FloatingPointError):
        guard.inspect(3, micro_losses, math.nan, batches)
    return tmp_path / "non_finite" / "iter_0000003", micro_losses


def test_the_dump_reproduces_the_step(stopped_step):
    folder, micro_losses = stopped_step
    seed_all(77)
    dump, replay = load_script("tools/replay_step.py").replay_step(str(folder))
    assert replay.micro_losses == micro_losses == dump.micro_losses
    assert math.isinf(micro_losses[1]["loss_mask_dice"])
    assert math.isfinite(micro_losses[1]["loss_text"])
    assert (dump.rank, dump.iteration) == (0, 3)
    # The outputs of all layers are finite, only the model's own, the losses, are not.
    assert replay.modules == [None, ""]
    assert "head.weight" in replay.parameters


def test_the_tool_prints_both_sides(stopped_step, capsys):
    tool = load_script("tools/replay_step.py")
    folder, micro_losses = stopped_step
    tool.main([str(folder)])
    printed = capsys.readouterr().out
    assert "micro-batch 1: 000002.jpg, 000003.jpg" in printed
    text = f"{micro_losses[0]['loss_text']:>12.6g}"
    assert f"{text} in the run {text} now" in printed
    assert tool.main([str(folder), "--rank", "4"]) == 1
    assert "rank 4: it has those of ranks [0]" in capsys.readouterr().err


def make_step(**entries):
    step = {"iteration": 4, "micro_batches": [], "micro_losses": [], "random_state": None}
    return step | entries


def test_targets_of_a_sample_come_back(tmp_path):
    instances = Instances((2, 2))
    instances.gt_masks = BitMasks(torch.eye(2, dtype=torch.bool)[None])
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 2.0, 2.0]]))
    instances.gt_category_names = CategoryNames(["dog"])
    item = {"instances": instances, "conversation": Conversation("What is this?", "A dog.")}
    step = make_step(micro_batches=[[item]], micro_losses=[{"loss_text": 1.5}])
    assert write_step_dump(str(tmp_path), model=None, config="", step=step)
    dump = read_step_dump(str(tmp_path))
    (read,) = dump.micro_batches[0]
    assert read["conversation"] == item["conversation"]
    assert read["instances"].image_size == (2, 2)
    assert torch.equal(read["instances"].gt_masks.tensor, instances.gt_masks.tensor)
    assert torch.equal(read["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)
    assert read["instances"].gt_category_names == CategoryNames(["dog"])
    assert (dump.iteration, dump.micro_losses) == (4, [{"loss_text": 1.5}])


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_nothing_in_a_dump_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = make_step(micro_batches=[[{"image": Trap()}]])
    write_step_dump(str(tmp_path), model=None, config="", step=step)
    with pytest.raises(pickle.UnpicklingError):
        read_step_dump(str(tmp_path))
    assert not (tmp_path / "trapped").exists()


def test_a_folder_without_a_dump_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not the dump of a step.*rank_\*\.pth"):
        read_step_dump(str(tmp_path))
