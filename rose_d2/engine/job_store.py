"""The key-value store through which the processes of a job found each other."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist

_TIMEOUT = timedelta(seconds=30)


def shared_store() -> dist.Store:
    """Connect anew to the store `init_process_group` made, without its prefix.

    A connection serves one thread: another thread's request on it would wait for the first one's.
    """
    # PyTorch has no public way to it.
    store = dist.distributed_c10d._get_default_store()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    own = store.clone()
    own.set_timeout(_TIMEOUT)
    return own
