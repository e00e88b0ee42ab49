"""The first convolution in plain PyTorch: frames to images, images to activations."""

import torch
from torch import Tensor

from storm_fast.kernels.activation import ACTIVATIONS, Activation


def normalise(obs_NYXP: Tensor, mean_YXP: Tensor | None, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """obs / 255 - mean in float32, rounded to `dtype`.

    Args:
        obs_NYXP: uint8 frames.
        mean_YXP: float32, subtracted; None subtracts nothing.
        dtype: of the result.
        layout: memory format of the result; `channels_last` is the frames' own order.

    Returns:
        image_NPYX.
    """
    # Without a mean in `dtype` throughout: 0 to 255 are exact there and a quotient is rounded once, to the same bits.
    image_NYXP = obs_NYXP.to(dtype if mean_YXP is None else torch.float32).div_(255)
    if mean_YXP is not None:
        image_NYXP = image_NYXP.sub_(mean_YXP).to(dtype)
    return image_NYXP.permute(0, 3, 1, 2).contiguous(memory_format=layout)


def gather(
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> Tensor:
    """`normalise` of the frames at index_N, int64 in [0, M); of all in order where it is None."""
    picked_NYXP = frames_MYXP if index_N is None else frames_MYXP.index_select(0, index_N)
    return normalise(picked_NYXP, mean_YXP, dtype, layout)


def first_conv(
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    weight_OPYX: Tensor,
    bias_O: Tensor | None,
    dtype: torch.dtype,
    layout: torch.memory_format,
    activation: Activation | None = "relu",
) -> Tensor:
    """activation(conv(obs / 255 - mean) + bias), which halves rows and columns.

    Args:
        frames_MYXP: uint8 frames.
        index_N: int64 in [0, M), which of them; None takes all in order.
        mean_YXP: float32, subtracted; None subtracts nothing. The zeros around an image stay zeros.
        weight_OPYX: filters of 4 x 4.
        bias_O: added to every channel; None adds nothing.
        dtype: of the products and of the result; autocast's, where it is on.
        layout: memory format of the result.
        activation: what the sum passes through; None leaves it.

    Returns:
        y_NOYX.
    """
    image_NPYX = gather(frames_MYXP, index_N, mean_YXP, dtype, layout)
    bias_O = None if bias_O is None else bias_O.to(dtype)
    y_NOYX = torch.nn.functional.conv2d(image_NPYX, weight_OPYX.to(dtype), bias_O, 2, 1)
    return y_NOYX if activation is None else ACTIVATIONS[activation](y_NOYX)
