import pytest

from rose_d2.data.build import WholeBatchSampler


def batches_of(monkeypatch, size, batch_size, num_processes):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: num_processes)
    found = []
    for rank in range(num_processes):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        sampler = WholeBatchSampler(size, batch_size)
        indices = list(sampler)
        assert len(indices) == len(sampler)
        found.append([indices[i : i + batch_size] for i in range(0, len(indices), batch_size)])
    return found


@pytest.mark.parametrize("size", [1, 7, 8, 20])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_batches_do_not_depend_on_the_processes(monkeypatch, size, batch_size):
    (alone,) = batches_of(monkeypatch, size, batch_size, 1)
    assert sum(alone, []) == list(range(size))
    for num_processes in (2, 3, 4):
        shares = batches_of(monkeypatch, size, batch_size, num_processes)
        assert sum(shares, []) == alone
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
