"""Residual, layer normalisation and ReLU in plain PyTorch (STORM Tables 5 to 9)."""

import torch
from torch import Tensor

NARROWED = ("cuda",)
"""Devices on which autocast narrows the result; a CPU keeps the dtype of the sum, which costs it no launch."""


def result_dtype(x_ND: Tensor, residual_ND: Tensor | None) -> torch.dtype:
    """What `layer_norm` leaves: autocast's dtype where that narrows it, else the dtype of x + residual."""
    device = x_ND.device.type
    if device in NARROWED and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x_ND.dtype if residual_ND is None else torch.promote_types(x_ND.dtype, residual_ND.dtype)


def layer_norm(
    x_ND: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    residual_ND: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """(s - mean) / sqrt(var + eps) * weight + bias over the last axis of s = x + residual, negatives cut off by a ReLU.

    The variance is that of the row itself, divided by D.

    Args:
        x_ND: what is normalised, [..., D], any float dtype.
        weight_D: scale of each column, float32.
        bias_D: shift of each column, float32.
        eps: added to the variance.
        residual_ND: added before, [..., D] or as much of its end; any float dtype.
        relu: whether negative results become 0.

    Returns:
        y_ND, of `result_dtype`.
    """
    sum_ND = x_ND if residual_ND is None else x_ND + residual_ND
    if sum_ND.device.type == "cpu" and sum_ND.dtype in (torch.bfloat16, torch.float16) and torch.is_grad_enabled():
        # A CPU sums weight's and bias's gradients in the dtype of what it normalises: over 16,384 rows of bf16 they are
        # off by a tenth of their norm (torch 2.13), 2e-6 in this way, which takes 4 % of an agent update.
        y_ND = torch.nn.functional.layer_norm(sum_ND.float(), weight_D.shape, weight_D, bias_D, eps).to(sum_ND.dtype)
    else:
        y_ND = torch.nn.functional.layer_norm(sum_ND, weight_D.shape, weight_D, bias_D, eps)
    return (y_ND.relu() if relu else y_ND).to(result_dtype(x_ND, residual_ND))
