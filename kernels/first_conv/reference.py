"""The first convolution in plain PyTorch: frames to images, images to activations."""

import torch
from torch import Tensor

from storm_fast.kernels.activation import Activation
from storm_fast.kernels.conv_relu import reference as conv_relu
from storm_fast.kernels.frames import reference as frames


def first_conv(
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    weight_OPYX: Tensor,
    bias_O: Tensor,
    dtype: torch.dtype,
    layout: torch.memory_format,
    activation: Activation = "relu",
) -> Tensor:
    """activation(conv(obs / 255 - mean) + bias), which halves rows and columns.

    Args:
        frames_MYXP: uint8 frames.
        index_N: int64 in [0, M), which of them; None takes all in order.
        mean_YXP: float32, subtracted; None subtracts nothing. The zeros around an image stay zeros.
        weight_OPYX: filters of 4 x 4.
        bias_O: added to every channel.
        dtype: of the products and of the result; autocast's, where it is on.
        layout: memory format of the result.
        activation: what the sum passes through.

    Returns:
        y_NOYX.
    """
    image_NPYX = frames.gather(frames_MYXP, index_N, mean_YXP, dtype, layout)
    return conv_relu.conv_relu(image_NPYX, weight_OPYX.to(dtype), bias_O.to(dtype), (2, 2), (1, 1), activation)
