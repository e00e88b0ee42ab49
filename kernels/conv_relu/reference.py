"""Convolution, bias, ReLU or SiLU in plain PyTorch."""

import torch
from torch import Tensor

from storm_fast.kernels.activation import ACTIVATIONS, Activation


def conv_relu(
    x_NIYX: Tensor,
    weight_OIYX: Tensor,
    bias_O: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    activation: Activation = "relu",
) -> Tensor:
    """activation(conv(x) + bias).

    Args:
        x_NIYX: images; products are in their dtype, or in autocast's.
        weight_OIYX: filters.
        bias_O: added to every channel.
        stride: of rows and columns.
        padding: zeros around rows and columns.
        activation: what the sum passes through.

    Returns:
        y_NOYX, in the products' dtype.
    """
    return ACTIVATIONS[activation](torch.nn.functional.conv2d(x_NIYX, weight_OIYX, bias_O, stride, padding))
