import os
import pickle

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from rose_d2.engine.non_finite import read_step_dump, write_step_dump
from rose_d2.prompts.conversation import Conversation
from rose_d2.structures.category_names import CategoryNames


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
