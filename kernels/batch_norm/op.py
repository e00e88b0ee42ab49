"""Batch normalisation as torch ops, and the public function, which runs the kernels or the reference."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.activation import Activation, check
from storm_fast.kernels.batch_norm import reference


@backend.op("batch_norm_stats", "batch_norm.stats_fwd", mutates=("running_mean_C", "running_var_C"))
def _stats(
    x_NCYX: Tensor, running_mean_C: Tensor, running_var_C: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    shape = (x_NCYX.shape[1],)
    return x_NCYX.new_empty(shape, dtype=torch.float32), x_NCYX.new_empty(shape, dtype=torch.float32)


@backend.op("batch_norm_apply", "batch_norm.apply_fwd")
def _apply(x_NCYX: Tensor, mean_C: Tensor, rstd_C: Tensor, weight_C: Tensor, bias_C: Tensor, silu: bool) -> Tensor:
    return _empty_like(x_NCYX)


@backend.op("batch_norm_apply_backward", "batch_norm.apply_bwd")
def _apply_backward(
    grad_NCYX: Tensor, x_NCYX: Tensor, mean_C: Tensor, rstd_C: Tensor, weight_C: Tensor, bias_C: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x_NCYX.shape[1],)
    return _empty_like(x_NCYX), weight_C.new_empty(shape), bias_C.new_empty(shape)


def _empty_like(x_NCYX: Tensor) -> Tensor:
    N, C, Y, X = x_NCYX.shape
    if x_NCYX.is_contiguous(memory_format=torch.channels_last):
        return x_NCYX.new_empty((N, Y, X, C)).permute(0, 3, 1, 2)
    return x_NCYX.new_empty((N, C, Y, X))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *saved, ctx.silu = inputs
    ctx.save_for_backward(*saved)


def _grad(ctx: Any, grad_NCYX: Tensor) -> tuple[Tensor | None, ...]:
    """As if mean and rstd were computed from x here: their gradients are part of x's."""
    x_NCYX, mean_C, rstd_C, weight_C, bias_C = ctx.saved_tensors
    to_x_NCYX, to_weight_C, to_bias_C = _apply_backward(grad_NCYX, x_NCYX, mean_C, rstd_C, weight_C, bias_C, ctx.silu)
    return to_x_NCYX, None, None, to_weight_C, to_bias_C, None


torch.library.register_autograd("storm_fast::batch_norm_apply", _grad, setup_context=_setup)


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
    """Batch normalisation in training with the activation behind it; see `reference.batch_norm`.

    Raises:
        ValueError: where x is not [N, C, Y, X] of more than one value a channel, the others are not float32 [C], or for
            another activation.
    """
    of_channel = (weight_C, bias_C, running_mean_C, running_var_C)
    C = x_NCYX.shape[1] if x_NCYX.ndim == 4 else 0
    if not C or x_NCYX.numel() // C < 2 or any(x.shape != (C,) or x.dtype != torch.float32 for x in of_channel):
        got = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in (x_NCYX, *of_channel))
        raise ValueError(f"want x [N, C, Y, X], more than one value a channel, and four float32 [C]; got {got}")
    check(activation)
    if not backend.is_triton(x_NCYX):
        return reference.batch_norm(x_NCYX, weight_C, bias_C, running_mean_C, running_var_C, momentum, eps, activation)
    mean_C, rstd_C = _stats(x_NCYX.detach(), running_mean_C, running_var_C, momentum, eps)
    return _apply(x_NCYX, mean_C, rstd_C, weight_C, bias_C, activation == "silu")
