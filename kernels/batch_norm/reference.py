"""Batch normalisation in training and the activation behind it, in plain PyTorch (STORM Tables 3 and 4)."""

import torch
from torch import Tensor

from storm_fast.kernels.activation import ACTIVATIONS, Activation


def batch_norm(
    x_NCYX: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    running_mean_C: Tensor,
    running_var_C: Tensor,
    momentum: float,
    eps: float,
    activation: Activation,
) -> Tensor:
    """activation((x - mean) / sqrt(var + eps) * weight + bias), mean and variance of each channel over the batch.

    Args:
        x_NCYX: what is normalised, any float dtype and memory format; its gradient flows through mean and variance too.
        weight_C: scale of each channel, float32.
        bias_C: shift of each channel, float32.
        running_mean_C: moves towards the mean by `momentum`, in place.
        running_var_C: moves towards the unbiased variance by `momentum`, in place.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.
        activation: what the result passes through.

    Returns:
        y_NCYX, dtype of ``x``; statistics are float32.
    """
    y_NCYX = torch.nn.functional.batch_norm(
        x_NCYX, running_mean_C, running_var_C, weight_C, bias_C, training=True, momentum=momentum, eps=eps
    )
    return ACTIVATIONS[activation](y_NCYX)
