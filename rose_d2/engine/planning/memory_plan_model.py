"""A model of any size that takes no memory and still runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

# The meta tensors of torch.compile and torch.export, which remember the device they stand for;
# documented under "Fake tensor" there.
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from rose_d2.modeling.meta_arch.rose import ROSE


def build_without_memory(cfg: CfgNode, dtype: torch.dtype | None = None) -> ROSE:
    """Build the model of a config with weights that have a shape and a type but no values.

    What is computed from weights has no values either; what is not (token ids, masks of the
    ground truth, matched patches) is computed as always. So the model runs its own forward and
    backward pass, whatever its size, as long as no value decides what is run: in training that
    is so, in evaluation only up to the choice of patches.

    Args:
        cfg: no checkpoints are read, see `without_downloads`.
        dtype: of all floating-point weights; None keeps those of the config.
    """
    with _EmptyOnMeta():
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    replaced: dict[int, nn.Parameter] = {}  # tied parameters stay one
    owned = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    for module, name, parameter in owned:
        if id(parameter) not in replaced:
            with mode:
                values = torch.empty(parameter.shape, dtype=dtype or parameter.dtype)
            replaced[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
        setattr(module, name, replaced[id(parameter)])
    return model


class KnownMasks(TorchFunctionMode):
    """Lets tensors without values be indexed by masks that have them."""

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.__getitem__ and isinstance(args[0], FakeTensor):
            tensor, index = args
            if isinstance(index, torch.Tensor) and index.dtype is torch.bool:
                return tensor[index.nonzero(as_tuple=True)]
        return func(*args, **(kwargs or {}))


class _EmptyOnMeta(TorchFunctionMode):
    """Puts weights on the meta device and leaves computed buffers where they are."""

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
