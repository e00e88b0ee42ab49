"""Layer normalisation as a torch op, and the public function, which runs the kernel or the reference."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.norm import reference

WIDEST = 4096  # columns that a program holds


@backend.op("layer_norm", "norm.layer_norm_fwd")
def _forward(
    x_ND: Tensor,
    residual_MD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    relu: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    N, D = x_ND.shape
    return (
        x_ND.new_empty((N, D), dtype=dtype),
        x_ND.new_empty((N,), dtype=torch.float32),
        x_ND.new_empty((N,), dtype=torch.float32),
    )


@backend.op("layer_norm_backward", "norm.layer_norm_bwd")
def _backward(
    grad_ND: Tensor,
    x_ND: Tensor,
    residual_MD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor,
    mean_N: Tensor,
    rstd_N: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    N, D = x_ND.shape
    dtype = x_ND.dtype if residual_MD is None else residual_MD.dtype
    return (
        x_ND.new_empty((N, D)),
        x_ND.new_empty((N if dtype != x_ND.dtype else 0, D), dtype=dtype),
        x_ND.new_empty((D,), dtype=torch.float32),
        x_ND.new_empty((D,), dtype=torch.float32),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x_ND, residual_MD, weight_D, bias_D, _, ctx.relu, _ = inputs
    ctx.save_for_backward(x_ND, residual_MD, weight_D, bias_D, *output[1:])
    ctx.set_materialize_grads(False)  # the outputs without a gradient would get zeros
    ctx.mark_non_differentiable(*output[1:])


def _grad(ctx: Any, grad_ND: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_ND is None:
        return (None,) * 7
    x_ND, residual_MD, weight_D, bias_D, mean_N, rstd_N = ctx.saved_tensors
    to_x_ND, to_residual_ND, to_weight_D, to_bias_D = _backward(
        grad_ND, x_ND, residual_MD, weight_D, bias_D, mean_N, rstd_N, ctx.relu
    )
    to_residual_MD = None
    if residual_MD is not None and ctx.needs_input_grad[1]:
        to_residual_MD = to_x_ND if residual_MD.dtype == x_ND.dtype else to_residual_ND
        if residual_MD.shape != x_ND.shape:
            to_residual_MD = to_residual_MD.view(-1, *residual_MD.shape).sum(0)
    return to_x_ND, to_residual_MD, to_weight_D, to_bias_D, None, None, None


torch.library.register_autograd("storm_fast::layer_norm", _grad, setup_context=_setup)


def _check(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, residual_ND: Tensor | None) -> None:
    D = x_ND.shape[-1] if x_ND.ndim else 0
    if not 0 < D <= WIDEST or weight_D.shape != (D,) or bias_D.shape != (D,):
        got = f"{tuple(x_ND.shape)}, {tuple(weight_D.shape)}, {tuple(bias_D.shape)}"
        raise ValueError(f"want x [..., D], weight and bias [D], D at most {WIDEST}; got {got}")
    if residual_ND is not None:
        depth = residual_ND.ndim
        if not 0 < depth <= x_ND.ndim or residual_ND.shape != x_ND.shape[x_ND.ndim - depth :]:
            got = f"{tuple(residual_ND.shape)} for x {tuple(x_ND.shape)}"
            raise ValueError(f"want a residual of x's shape or of its last axes; got {got}")


def layer_norm(
    x_ND: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    residual_ND: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """LayerNorm(x + residual) over the last axis, with or without a ReLU behind it; see `reference.layer_norm`.

    The kernel's sum with the residual and all behind it are float32, rounded once.

    Raises:
        ValueError: where weight or bias is not [D], D is above 4096, or the residual has neither the shape of x nor
            that of its last axes.
    """
    _check(x_ND, weight_D, bias_D, residual_ND)
    if not backend.is_triton(x_ND):
        return reference.layer_norm(x_ND, weight_D, bias_D, eps, residual_ND, relu)
    D, dtype = x_ND.shape[-1], reference.result_dtype(x_ND, residual_ND)
    residual_MD = None if residual_ND is None else residual_ND.reshape(-1, D)
    y_ND = _forward(x_ND.reshape(-1, D), residual_MD, weight_D, bias_D, eps, relu, dtype)[0]
    return y_ND.view(x_ND.shape)
