import contextlib
import json
import os
import shutil

import pytest
import torch
from toy_training import ToyROSE

from rose_d2 import files as atomic_folder
from rose_d2.checkpoint import checkpointer as module
from rose_d2.checkpoint.checkpointer import RoseCheckpointer


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


STEPS_OF_A_SAVE = [
    (module, "save_weights"),
    (module, "write_manifest"),
    (module, "publish_folder"),
    (atomic_folder, "flush_to_disk"),
    (atomic_folder.os, "replace"),
]


def resumed(folder):
    """What the counter holds after resuming in a folder."""
    counter = Counter()
    RoseCheckpointer(ToyROSE(), str(folder), counter=counter).resume_or_load("")
    return counter.value


class Interrupted(BaseException):
    """Stands for SIGKILL: nothing in the package catches it."""


def interrupt(patch, module, name, calls_before=0):
    """Let a function work some times, and stop everything at the next call."""
    original, left = getattr(module, name), calls_before

    def fail(*args, **kwargs):
        nonlocal left
        left -= 1
        if left < 0:
            raise Interrupted
        return original(*args, **kwargs)

    patch.setattr(module, name, fail)


@pytest.mark.parametrize(("module", "name"), STEPS_OF_A_SAVE)
def test_interrupted_save_leaves_the_one_before(tmp_path, monkeypatch, module, name):
    checkpointer = RoseCheckpointer(ToyROSE(), str(tmp_path), counter=Counter(1))
    checkpointer.save("model_0000001")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, module, name)
        checkpointer.save("model_0000003")
    assert resumed(tmp_path) == 1
    checkpointer.save("model_0000003")
    names = ["last_checkpoint", "model_0000001", "model_0000003"]
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("moves_before", range(4))
def test_the_only_checkpoint_survives_being_replaced_by_a_later_one(
    tmp_path, monkeypatch, moves_before
):
    # Renames: the old folder out of the way, the new one into its place, the tag.
    counter = Counter(1)
    checkpointer = RoseCheckpointer(ToyROSE(), str(tmp_path), counter=counter)
    checkpointer.save("model_final", iteration=1)
    counter.value = 2
    with monkeypatch.context() as patch, contextlib.suppress(Interrupted):
        interrupt(patch, atomic_folder.os, "replace", moves_before)
        checkpointer.save("model_final", iteration=2)
    # Before its first rename the new folder has no claim yet.
    assert resumed(tmp_path) == (1 if moves_before == 0 else 2)
    assert (tmp_path / "model_final").is_dir()
    RoseCheckpointer(ToyROSE(), str(tmp_path)).save("model_final", iteration=3)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final"]


def save_three(folder):
    """Checkpoints of iterations 1, 2 and 3, whose counters hold as much."""
    counter = Counter()
    checkpointer = RoseCheckpointer(ToyROSE(), str(folder), counter=counter)
    for counter.value in (1, 2, 3):
        checkpointer.save(f"model_{counter.value:07d}", iteration=counter.value)
    return checkpointer


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", cut_off),
        ("model.safetensors", flip_a_bit),
        ("training_state.pth", flip_a_bit),
        ("training_state.pth", os.remove),
        ("manifest.json", cut_off),
        ("manifest.json", os.remove),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, caplog, name, damage):
    save_three(tmp_path)
    damage(tmp_path / "model_0000003" / name)
    assert resumed(tmp_path) == 2
    (warning,) = [record.getMessage() for record in caplog.records if "damaged" in record.msg]
    assert "model_0000003: " in warning and name in warning


def test_two_damaged_checkpoints_are_skipped(tmp_path):
    save_three(tmp_path)
    flip_a_bit(tmp_path / "model_0000003" / "model.safetensors")
    shutil.rmtree(tmp_path / "model_0000002")
    (tmp_path / "model_0000002").mkdir()
    assert resumed(tmp_path) == 1


def test_nothing_whole_is_refused_and_not_started_anew(tmp_path):
    save_three(tmp_path)
    for name in ("model_0000001", "model_0000002", "model_0000003"):
        cut_off(tmp_path / name / "training_state.pth")
    with pytest.raises(ValueError, match="no checkpoint in .* is whole") as error:
        resumed(tmp_path)
    assert str(error.value).count(" bytes instead of ") == 3


def test_the_user_chooses_an_earlier_one_by_last_checkpoint(tmp_path):
    save_three(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001\n")
    assert resumed(tmp_path) == 1


def test_last_checkpoint_need_not_be_there(tmp_path):
    save_three(tmp_path)
    (tmp_path / "last_checkpoint").unlink()
    assert resumed(tmp_path) == 3


def test_another_run_in_the_folder_is_neither_removed_nor_resumed(tmp_path):
    save_three(tmp_path)
    checkpointer = RoseCheckpointer(ToyROSE(), str(tmp_path), keep=1, counter=Counter(10))
    checkpointer.save("model_0000000", iteration=0)
    folders = [f"model_000000{index}" for index in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == folders
    cut_off(tmp_path / "model_0000000" / "model.safetensors")
    with pytest.raises(ValueError, match="no checkpoint"):
        resumed(tmp_path)


def test_a_resumed_run_goes_on_removing_its_own(tmp_path):
    save_three(tmp_path)
    checkpointer = RoseCheckpointer(ToyROSE(), str(tmp_path), keep=2, counter=Counter())
    checkpointer.resume_or_load("")
    checkpointer.save("model_0000004", iteration=4)
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["model_0000003", "model_0000004"]


def test_damaged_weights_are_refused_without_resuming_too(tmp_path):
    save_three(tmp_path)
    folder = tmp_path / "model_0000003"
    flip_a_bit(folder / "model.safetensors")
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(ValueError, match="is damaged: model.safetensors has another SHA-256"):
            RoseCheckpointer(ToyROSE()).load(str(path))
    (folder / "training_state.pth").unlink()  # not needed for its weights
    RoseCheckpointer(ToyROSE()).load(str(tmp_path / "model_0000002"))


def test_manifest_says_what_is_in_the_folder(tmp_path):
    RoseCheckpointer(ToyROSE(), str(tmp_path), config_hash="abc").save("one", iteration=7)
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert (manifest["iteration"], manifest["config_hash"], manifest["world_size"]) == (7, "abc", 1)
    assert set(manifest["files"]) == {"model.safetensors", "training_state.pth"}
    size = (tmp_path / "one" / "model.safetensors").stat().st_size
    assert manifest["files"]["model.safetensors"]["bytes"] == size


class Sharded(ToyROSE):
    """A model whose weights are whole inside `gathered` only, as under ZeRO-3."""

    whole = False

    @contextlib.contextmanager
    def gathered(self):
        self.whole = True
        yield
        self.whole = False

    def state_dict(self, *args, **kwargs):
        assert self.whole
        return super().state_dict(*args, **kwargs)


def test_weights_are_read_and_written_while_they_are_whole(tmp_path):
    model = Sharded()
    checkpointer = RoseCheckpointer(
        model, str(tmp_path), gathered_parameters=model.gathered, counter=Counter(5)
    )
    checkpointer.save("model_0000001")
    checkpointer.resume_or_load("")
    assert resumed(tmp_path) == 5


@pytest.mark.parametrize("path", ["nowhere", "nowhere.safetensors", "."])
def test_missing_weights_are_one_sentence(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No weights at .*: set MODEL\.WEIGHTS"):
        RoseCheckpointer(ToyROSE()).load(path)


def test_weights_alone_cannot_be_resumed(tmp_path):
    RoseCheckpointer(ToyROSE(), str(tmp_path)).save("model_final")
    (tmp_path / "model_final" / "training_state.pth").unlink()
    checkpointer = RoseCheckpointer(ToyROSE(), str(tmp_path), counter=Counter())
    with pytest.raises(ValueError, match="Cannot resume.*\n.*training_state.pth is missing"):
        checkpointer.resume_or_load("")
    with pytest.raises(FileNotFoundError, match="Cannot resume"):
        checkpointer.load(str(tmp_path / "model_final"))


def test_training_state_is_not_unpickled_with_code(tmp_path):
    RoseCheckpointer(ToyROSE(), str(tmp_path), counter=Counter()).save("model_final")
    torch.save({"counter": Counter()}, tmp_path / "model_final" / "training_state.pth")
    checkpointer = RoseCheckpointer(ToyROSE(), str(tmp_path), counter=Counter())
    with pytest.raises(Exception, match="[Ww]eights"):
        checkpointer.load(str(tmp_path / "model_final"))
