import os

import pytest
import torch
from toy_training import ToyROSE

from rose_d2.engine import checkpointer as module
from rose_d2.engine.checkpointer import RoseCheckpointer


class Counter:
    """A checkpointable that holds one number."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_save_and_resume(tmp_path):
    model = ToyROSE()
    RoseCheckpointer(model, str(tmp_path), counter=Counter(7)).save("model_0000004", iteration=4)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000004"]
    other, counter = ToyROSE(), Counter()
    rest = RoseCheckpointer(other, str(tmp_path), counter=counter).resume_or_load("")
    assert counter.value == 7 and rest == {"iteration": 4}
    assert torch.equal(other.head.weight, model.head.weight)


def test_without_resume_only_weights_are_loaded(tmp_path):
    RoseCheckpointer(ToyROSE(), str(tmp_path), counter=Counter(7)).save("model_final")
    counter = Counter()
    checkpointer = RoseCheckpointer(ToyROSE(), str(tmp_path / "new"), counter=counter)
    for path in ("model_final", "model_final/model.safetensors"):
        checkpointer.resume_or_load(str(tmp_path / path), resume=False)
    assert counter.value == 0


def test_newest_are_kept_and_the_final_one_never_removed(tmp_path):
    checkpointer = RoseCheckpointer(ToyROSE(), str(tmp_path), keep=2)
    for name in ("model_final", "model_0000001", "model_0000003", "model_0000005"):
        checkpointer.save(name)
    names = ["last_checkpoint", "model_0000003", "model_0000005", "model_final"]
    assert sorted(os.listdir(tmp_path)) == names


def test_saving_under_an_existing_name_replaces_it(tmp_path):
    model = ToyROSE()
    checkpointer = RoseCheckpointer(model, str(tmp_path))
    checkpointer.save("model_final")
    model.scale.fill_(5.0)
    checkpointer.save("model_final")
    other = ToyROSE()
    RoseCheckpointer(other).load(str(tmp_path / "model_final"))
    assert other.scale.item() == 5.0
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final"]


@pytest.mark.parametrize("broken", ["save_weights", "_flush_to_disk", "_move_folder"])
def test_interrupted_save_leaves_the_one_before(tmp_path, monkeypatch, broken):
    model = ToyROSE()
    checkpointer = RoseCheckpointer(model, str(tmp_path), counter=Counter(1))
    checkpointer.save("model_0000001")

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, broken, fail)
        checkpointer.save("model_0000003")
    counter = Counter()
    RoseCheckpointer(ToyROSE(), str(tmp_path), counter=counter).resume_or_load("")
    assert counter.value == 1
    checkpointer.save("model_0000003")
    names = ["last_checkpoint", "model_0000001", "model_0000003"]
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("path", ["nowhere", "nowhere.safetensors", "."])
def test_missing_weights_are_one_sentence(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No weights at .*: set MODEL\.WEIGHTS"):
        RoseCheckpointer(ToyROSE()).load(path)


def test_weights_alone_cannot_be_resumed(tmp_path):
    RoseCheckpointer(ToyROSE(), str(tmp_path)).save("model_final")
    (tmp_path / "model_final" / "training_state.pth").unlink()
    checkpointer = RoseCheckpointer(ToyROSE(), str(tmp_path), counter=Counter())
    with pytest.raises(FileNotFoundError, match="Cannot resume"):
        checkpointer.resume_or_load("")


def test_training_state_is_not_unpickled_with_code(tmp_path):
    RoseCheckpointer(ToyROSE(), str(tmp_path), counter=Counter()).save("model_final")
    torch.save({"counter": Counter()}, tmp_path / "model_final" / "training_state.pth")
    checkpointer = RoseCheckpointer(ToyROSE(), str(tmp_path), counter=Counter())
    with pytest.raises(Exception, match="[Ww]eights"):
        checkpointer.resume_or_load("")
