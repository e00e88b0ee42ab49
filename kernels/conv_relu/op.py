"""Bias and ReLU as a torch op, and the public function, which runs it behind a convolution, or the reference."""

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.activation import Activation, check
from storm_fast.kernels.conv_relu import reference


@backend.op("bias_relu", "conv_relu.bias_relu_fwd")
def _bias_relu(x_NPYX: Tensor, bias_P: Tensor, silu: bool) -> Tensor:
    N, P, Y, X = x_NPYX.shape
    if x_NPYX.is_contiguous(memory_format=torch.channels_last):
        return x_NPYX.new_empty((N, Y, X, P)).permute(0, 3, 1, 2)
    return x_NPYX.new_empty((N, P, Y, X))


def conv_relu(
    x_NIYX: Tensor,
    weight_OIYX: Tensor,
    bias_O: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    activation: Activation = "relu",
) -> Tensor:
    """activation(conv(x) + bias); see `reference.conv_relu`, which also runs wherever a gradient is wanted.

    Raises:
        ValueError: where images, filters and bias do not fit each other, or for another activation.
    """
    is_fit = x_NIYX.ndim == weight_OIYX.ndim == 4 and x_NIYX.shape[1] == weight_OIYX.shape[1]
    if not is_fit or bias_O.shape != weight_OIYX.shape[:1]:
        got = ", ".join(str(tuple(t.shape)) for t in (x_NIYX, weight_OIYX, bias_O))
        raise ValueError(f"want images [N, I, Y, X], filters [O, I, y, x] and a bias [O]; got {got}")
    check(activation)
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (x_NIYX, weight_OIYX, bias_O))
    if learns or not backend.is_triton(x_NIYX):
        return reference.conv_relu(x_NIYX, weight_OIYX, bias_O, stride, padding, activation)
    y_NOYX = torch.nn.functional.conv2d(x_NIYX, weight_OIYX, None, stride, padding)
    return _bias_relu(y_NOYX, bias_O, activation == "silu")
