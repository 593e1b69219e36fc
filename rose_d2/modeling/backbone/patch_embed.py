"""Room for a prior mask in a vision tower's first convolution."""

from __future__ import annotations

import torch
from torch import nn

RGB_CHANNELS = 3
NUM_INPUT_CHANNELS = RGB_CHANNELS + 1


def widen_patch_embedding(convolution: nn.Conv2d) -> nn.Conv2d:
    """Widen a patch embedding from RGB to RGB plus mask, without changing what it computes.

    The fourth channel's weights start at zero, so at step 0 any mask leaves the pretrained model
    as it was (the paper concatenates image and mask, section 3.4).

    Args:
        convolution: the loaded patch embedding with three input channels.

    Returns:
        A convolution with four input channels on the same device and in the same dtype.

    Raises:
        ValueError: if the convolution does not have three input channels.
    """
    if convolution.in_channels != RGB_CHANNELS:
        raise ValueError(
            f"Expected a patch embedding of 3 channels, got {convolution.in_channels}: widen once, "
            "after loading the pretrained weights."
        )
    widened = nn.Conv2d(
        NUM_INPUT_CHANNELS,
        convolution.out_channels,
        kernel_size=convolution.kernel_size,
        stride=convolution.stride,
        padding=convolution.padding,
        bias=convolution.bias is not None,
        device=convolution.weight.device,
        dtype=convolution.weight.dtype,
    )
    with torch.no_grad():
        widened.weight.zero_()
        widened.weight[:, :RGB_CHANNELS] = convolution.weight
        if convolution.bias is not None:
            widened.bias.copy_(convolution.bias)
    return widened
