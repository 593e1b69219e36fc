"""What DeepSpeed's script put together is read without running code and saved as ours."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toy_training import ToyROSE

from rose_d2.checkpoint.weights import (
    consolidated_to_safetensors,
    is_consolidated,
    keys_to_save,
    load_weights,
    read_safetensors,
    read_torch_file,
    refuse_shards,
    save_weights,
)


def test_round_trip_keeps_every_tensor_and_the_tie(tmp_path):
    path = str(tmp_path / "model.safetensors")
    model, other = ToyROSE(), ToyROSE()
    save_weights(model, path, {"config_hash": "abc"})
    load_weights(other, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other.lm_head.weight is other.embed_tokens.weight
    state, metadata = read_safetensors(path)
    assert "embed_tokens.weight" in state and "lm_head.weight" not in state
    assert metadata["config_hash"] == "abc"
    assert json.loads(metadata["tied"]) == {"lm_head.weight": "embed_tokens.weight"}


def test_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    save_weights(ToyROSE(), str(tmp_path / "model.safetensors"))
    plain, weights = tmp_path / "plain", tmp_path / "model.safetensors"
    assert weights.stat().st_mode == plain.stat().st_mode


def test_frozen_parameters_are_left_out_only_under_a_pretrained_base(tmp_path):
    path = str(tmp_path / "model.safetensors")
    model = ToyROSE(base="hub/name@1234")
    assert "frozen.weight" not in keys_to_save(model) and "scale" in keys_to_save(model)
    assert "frozen.weight" in keys_to_save(ToyROSE())
    save_weights(model, path)
    assert json.loads(read_safetensors(path)[1]["base_revisions"]) == {"frozen": "hub/name@1234"}
    load_weights(ToyROSE(base="hub/name@1234"), path)


def test_another_base_warns(tmp_path, caplog):
    path = str(tmp_path / "model.safetensors")
    save_weights(ToyROSE(base="one"), path)
    load_weights(ToyROSE(base="two"), path)
    assert "'one'" in caplog.text and "'two'" in caplog.text


def test_every_misfit_is_listed_and_refused(tmp_path):
    path = str(tmp_path / "model.safetensors")
    source = ToyROSE()
    source.head = nn.Linear(4, 3)
    source.extra = nn.Linear(2, 2, bias=False)
    del source.norm
    save_weights(source, path)
    with pytest.raises(ValueError) as error:
        load_weights(ToyROSE(), path)
    for line in (
        "missing: norm.weight (4,)",
        "missing: norm.bias (4,)",
        "unexpected: extra.weight (2, 2)",
        "mismatched: head.weight (3, 4) in the file, (4, 4) in the model",
        "mismatched: head.bias (3,) in the file, (4,) in the model",
    ):
        assert line in str(error.value)


def test_misfits_are_only_warned_about_on_request(tmp_path, caplog):
    path = str(tmp_path / "model.safetensors")
    source, target = ToyROSE(), ToyROSE()
    source.head = nn.Linear(4, 3)
    kept = target.head.weight.clone()
    save_weights(source, path)
    load_weights(target, path, allow_missing_keys=True)
    assert "mismatched: head.weight" in caplog.text
    assert torch.equal(target.head.weight, kept)
    assert torch.equal(target.embed_tokens.weight, source.embed_tokens.weight)


def test_untied_weights_do_not_fit_a_tied_model(tmp_path):
    path = str(tmp_path / "model.safetensors")
    source = ToyROSE()
    source.lm_head.weight = nn.Parameter(source.lm_head.weight + 1)
    save_weights(source, path)
    with pytest.raises(ValueError, match="lm_head.weight and embed_tokens.weight are tied"):
        load_weights(ToyROSE(), path)


def test_tied_weights_do_not_fit_an_untied_model(tmp_path):
    path = str(tmp_path / "model.safetensors")
    save_weights(ToyROSE(), path)
    target = ToyROSE()
    target.lm_head.weight = nn.Parameter(target.lm_head.weight + 1)
    with pytest.raises(ValueError, match="missing: lm_head.weight"):
        load_weights(target, path)


def test_damaged_file_is_one_sentence(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(ToyROSE(), str(path))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_weights(ToyROSE(), str(path))


def write(folder, state, parts=1):
    """Like zero_to_fp32.py: every name, both of a tied pair, in one file or numbered ones."""
    folder.mkdir()
    names = sorted(state)
    for part in range(parts):
        name = (
            f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin" if parts > 1 else "pytorch_model.bin"
        )
        torch.save({key: state[key] for key in names[part::parts]}, folder / name)


@pytest.mark.parametrize("parts", [1, 3])
def test_whole_weights_become_what_a_run_saves(tmp_path, parts):
    source = ToyROSE(base="hub/name")
    write(tmp_path / "whole", source.state_dict(), parts)
    assert is_consolidated(tmp_path / "whole") and not is_consolidated(tmp_path)
    path = tmp_path / "model.safetensors"
    consolidated_to_safetensors(ToyROSE(base="hub/name"), tmp_path / "whole", path)
    state, _ = read_safetensors(str(path))
    assert "frozen.weight" not in state and "lm_head.weight" not in state
    target = ToyROSE(base="hub/name")
    load_weights(target, str(path))
    assert torch.equal(target.embed_tokens.weight, source.embed_tokens.weight)
    assert torch.equal(target.head.bias, source.head.bias)


def test_misfits_and_code_are_refused(tmp_path):
    state = ToyROSE().state_dict()
    state["extra"] = state.pop("head.bias")
    write(tmp_path / "other", state)
    with pytest.raises(ValueError, match=r"missing: head.bias \(4,\)\n  unexpected: extra \(4,\)"):
        consolidated_to_safetensors(ToyROSE(), tmp_path / "other", tmp_path / "x.safetensors")
    write(tmp_path / "code", {"head.bias": ToyROSE()})
    with pytest.raises(ValueError, match="without running code from it"):
        consolidated_to_safetensors(ToyROSE(), tmp_path / "code", tmp_path / "x.safetensors")


def test_shards_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "zero_to_fp32.py").touch()
    with pytest.raises(ValueError, match=f"zero_to_fp32.py {tmp_path} NEW_FOLDER and give"):
        refuse_shards(tmp_path)
    (tmp_path / "model.safetensors").touch()
    refuse_shards(tmp_path)


def _with(tmp_path, change):
    """A file of a model's weights after `change` of one of them."""
    path = tmp_path / "model.safetensors"
    save_weights(ToyROSE(), str(path))
    state, metadata = read_safetensors(str(path))
    state["head.bias"] = change(state["head.bias"])
    save_file(state, path, metadata)
    return str(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_read_nor_written(tmp_path, value):
    path = _with(tmp_path, lambda tensor: tensor.fill_(value))
    with pytest.raises(ValueError, match=r"1 of \d+ weights have NaN.*first head.bias"):
        load_weights(ToyROSE(), path)
    model = ToyROSE()
    model.head.bias.data.fill_(value)
    with pytest.raises(ValueError, match=r"other.safetensors: 1 of .*lower SOLVER.BASE_LR"):
        save_weights(model, str(tmp_path / "other.safetensors"))
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64])
def test_numbers_of_another_kind_are_refused(tmp_path, dtype):
    path = _with(tmp_path, lambda tensor: tensor.to(dtype))
    with pytest.raises(ValueError, match=f"mismatched: head.bias is {dtype} in the file"):
        load_weights(ToyROSE(), path)


def test_half_precision_is_read(tmp_path):
    load_weights(ToyROSE(), _with(tmp_path, lambda tensor: tensor.half()))


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"PK\x03\x04", b"\x80\x02]q\x00."])
def test_files_of_another_format_are_one_sentence(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.bin (is no file that|holds a)") as error:
        read_torch_file(tmp_path / "a.bin")
    assert "\n" not in str(error.value)
