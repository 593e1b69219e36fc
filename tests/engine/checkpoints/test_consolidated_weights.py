"""What DeepSpeed's script put together is read without running code and saved as ours."""

import pytest
import torch
from toy_training import ToyROSE

from rose_d2.checkpoint.weights import (
    consolidated_to_safetensors,
    is_consolidated,
    load_weights,
    read_safetensors,
    refuse_shards,
)


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
    with pytest.raises(Exception, match="[Ww]eights.only"):
        consolidated_to_safetensors(ToyROSE(), tmp_path / "code", tmp_path / "x.safetensors")


def test_shards_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "zero_to_fp32.py").touch()
    with pytest.raises(ValueError, match=f"zero_to_fp32.py {tmp_path} NEW_FOLDER and give"):
        refuse_shards(tmp_path)
    (tmp_path / "model.safetensors").touch()
    refuse_shards(tmp_path)
