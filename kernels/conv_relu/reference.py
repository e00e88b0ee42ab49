"""Convolution, bias, ReLU in plain PyTorch."""

import torch
from torch import Tensor


def conv_relu(
    x_NIYX: Tensor, weight_OIYX: Tensor, bias_O: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """relu(conv(x) + bias).

    Args:
        x_NIYX: images; products are in their dtype, or in autocast's.
        weight_OIYX: filters.
        bias_O: added to every channel.
        stride: of rows and columns.
        padding: zeros around rows and columns.

    Returns:
        y_NOYX, in the products' dtype.
    """
    return torch.nn.functional.conv2d(x_NIYX, weight_OIYX, bias_O, stride, padding).relu_()
