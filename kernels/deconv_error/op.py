"""The last deconvolution's error as a torch op, and the public function, which runs the kernels or the reference."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.deconv_error import reference


@backend.op("deconv_error", "deconv_error.error_fwd")
def _error(
    x_NCYX: Tensor, weight_CPYX: Tensor, bias_P: Tensor, mean_YXP: Tensor | None, obs_NYXP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    N, P = x_NCYX.shape[0], weight_CPYX.shape[1]
    error_N = x_NCYX.new_empty((N,), dtype=torch.float32)
    return error_N, x_NCYX.new_empty(obs_NYXP.shape), x_NCYX.new_empty((N, P), dtype=torch.float32)


@backend.op("deconv_error_backward_x", "deconv_error.x_bwd")
def _x_backward(scale_N: Tensor, diff_NYXP: Tensor, weight_CPYX: Tensor, is_channels_last: bool) -> Tensor:
    N, Y, X = diff_NYXP.shape[:3]
    C = weight_CPYX.shape[0]
    if is_channels_last:
        return diff_NYXP.new_empty((N, Y // 2, X // 2, C)).permute(0, 3, 1, 2)
    return diff_NYXP.new_empty((N, C, Y // 2, X // 2))


@backend.op("deconv_error_backward_weight", "deconv_error.weight_bwd")
def _weight_backward(scale_N: Tensor, diff_NYXP: Tensor, x_NCYX: Tensor, dtype: torch.dtype) -> Tensor:
    return diff_NYXP.new_empty((x_NCYX.shape[1], 4, 4, diff_NYXP.shape[3]), dtype=dtype).permute(0, 3, 1, 2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_NCYX, weight_CPYX, bias_P, _, _ = inputs
    _, diff_NYXP, sum_NP = output
    ctx.save_for_backward(x_NCYX, weight_CPYX, diff_NYXP, sum_NP)
    ctx.bias_dtype = bias_P.dtype
    ctx.set_materialize_grads(False)  # the outputs without a gradient would get zeros
    ctx.mark_non_differentiable(diff_NYXP, sum_NP)


def _grad(ctx: Any, grad_N: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_N is None:
        return None, None, None, None, None
    x_NCYX, weight_CPYX, diff_NYXP, sum_NP = ctx.saved_tensors
    scale_N = 2 * grad_N
    is_channels_last = x_NCYX.is_contiguous(memory_format=torch.channels_last)
    x, weight, bias = ctx.needs_input_grad[:3]
    return (
        _x_backward(scale_N, diff_NYXP, weight_CPYX, is_channels_last) if x else None,
        _weight_backward(scale_N, diff_NYXP, x_NCYX, weight_CPYX.dtype) if weight else None,
        (scale_N @ sum_NP).to(ctx.bias_dtype) if bias else None,
        None,
        None,
    )


torch.library.register_autograd("storm_fast::deconv_error", _grad, setup_context=_setup)


def squared_error(
    x_NCYX: Tensor, weight_CPYX: Tensor, bias_P: Tensor, mean_YXP: Tensor | None, obs_NYXP: Tensor
) -> Tensor:
    """The sum over a frame's pixels of (deconv(x) + bias + mean - obs / 255)^2; see `reference.squared_error`.

    The kernels multiply in the dtype of x, which is autocast's where it is on.

    Raises:
        ValueError: where x, filters, bias, mean and frames do not fit each other.
    """
    given = (x_NCYX, weight_CPYX, bias_P, mean_YXP, obs_NYXP)
    is_image = x_NCYX.ndim == weight_CPYX.ndim == 4 and weight_CPYX.shape[0] == x_NCYX.shape[1]
    frame = (2 * x_NCYX.shape[-2], 2 * x_NCYX.shape[-1], *weight_CPYX.shape[1:2])
    is_fit = is_image and weight_CPYX.shape[2:] == (4, 4) and bias_P.shape == frame[2:]
    is_fit = is_fit and obs_NYXP.shape == (len(x_NCYX), *frame) and obs_NYXP.dtype == torch.uint8
    if not is_fit or (mean_YXP is not None and mean_YXP.shape != frame):
        got = ", ".join("None" if x is None else f"{x.dtype} {tuple(x.shape)}" for x in given)
        wanted = "x [N, C, Y, X], filters [C, P, 4, 4], bias [P], mean [2 Y, 2 X, P] or None, uint8 [N, 2 Y, 2 X, P]"
        raise ValueError(f"want {wanted}; got {got}")
    if not backend.is_triton(x_NCYX):
        return reference.squared_error(x_NCYX, weight_CPYX, bias_P, mean_YXP, obs_NYXP)
    return _error(x_NCYX, weight_CPYX, bias_P, mean_YXP, obs_NYXP)[0]
