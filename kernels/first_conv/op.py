"""The first convolution as a torch op, and the public function, which runs the kernel or the reference."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.activation import Activation, check
from storm_fast.kernels.first_conv import reference

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@backend.op("first_conv", "first_conv.first_conv_fwd")
def _first_conv(
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    weight_OPYX: Tensor,
    bias_O: Tensor | None,
    dtype: torch.dtype,
    is_channels_last: bool,
    activation: str,
) -> Tensor:
    M, Y, X = frames_MYXP.shape[:3]
    N, filters = M if index_N is None else index_N.shape[0], weight_OPYX.shape[0]
    if is_channels_last:
        return frames_MYXP.new_empty((N, Y // 2, X // 2, filters), dtype=dtype).permute(0, 3, 1, 2)
    return frames_MYXP.new_empty((N, filters, Y // 2, X // 2), dtype=dtype)


@backend.op("first_conv_backward", "first_conv.filters_bwd")
def _backward(
    grad_NOYX: Tensor, frames_MYXP: Tensor, index_N: Tensor | None, mean_YXP: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return grad_NOYX.new_empty((grad_NOYX.shape[1], 4, 4, frames_MYXP.shape[3]), dtype=dtype).permute(0, 3, 1, 2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    frames_MYXP, index_N, mean_YXP, weight_OPYX, *_ = inputs
    ctx.save_for_backward(frames_MYXP, index_N, mean_YXP)
    ctx.weight_dtype = weight_OPYX.dtype


def _grad(ctx: Any, grad_NOYX: Tensor) -> tuple[Tensor | None, ...]:
    """Of the raw convolution, which has neither bias nor activation: the public function sees to that."""
    frames_MYXP, index_N, mean_YXP = ctx.saved_tensors
    weight_OPYX = _backward(grad_NOYX, frames_MYXP, index_N, mean_YXP, ctx.weight_dtype)
    return None, None, None, weight_OPYX, None, None, None, None


torch.library.register_autograd("storm_fast::first_conv", _grad, setup_context=_setup)


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
    """activation(conv(obs / 255 - mean) + bias); see `reference.first_conv`.

    Without bias and activation the filters have a gradient; with either, the reference runs where one is wanted. The
    index lies on the device and is not checked against M.

    Raises:
        ValueError: where frames, index, mean, filters and bias do not fit each other, or for another dtype or
            activation.
    """
    is_image = frames_MYXP.ndim == 4 and frames_MYXP.dtype == torch.uint8 and min(frames_MYXP.shape[1:3]) >= 2
    if not is_image or (mean_YXP is not None and mean_YXP.shape != frames_MYXP.shape[1:]):
        got = f"{_told(frames_MYXP)}, {_told(mean_YXP)}"
        raise ValueError(f"want uint8 frames [N, Y, X, P] of at least 2 x 2 and a mean [Y, X, P] or None; got {got}")
    if index_N is not None and (index_N.ndim != 1 or index_N.dtype != torch.int64):
        raise ValueError(f"want an int64 index [N] or None; got {_told(index_N)}")
    filters = (*weight_OPYX.shape[:1], frames_MYXP.shape[3], 4, 4)
    if weight_OPYX.shape != filters or (bias_O is not None and bias_O.shape != filters[:1]):
        got = f"{_told(weight_OPYX)}, {_told(bias_O)}"
        raise ValueError(f"want filters [O, {frames_MYXP.shape[3]}, 4, 4] and a bias [O] or None; got {got}")
    if dtype not in _DTYPES:
        raise ValueError(f"want a dtype of {_DTYPES}; got {dtype}")
    given = (frames_MYXP, index_N, mean_YXP, weight_OPYX, bias_O)
    if any(x is not None and x.device != frames_MYXP.device for x in given):
        got = ", ".join(str(x.device) for x in given if x is not None)
        raise ValueError(f"want frames, index, mean, filters and bias on one device; got {got}")
    if activation is not None:
        check(activation)
    is_raw = bias_O is None and activation is None
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (weight_OPYX, bias_O))
    if (learns and not is_raw) or not backend.is_triton(frames_MYXP):
        return reference.first_conv(frames_MYXP, index_N, mean_YXP, weight_OPYX, bias_O, dtype, layout, activation)
    is_channels_last = layout == torch.channels_last
    return _first_conv(
        frames_MYXP, index_N, mean_YXP, weight_OPYX, bias_O, dtype, is_channels_last, activation or "none"
    )


def _told(x: Tensor | None) -> str:
    """A tensor in an error."""
    return "None" if x is None else f"{x.dtype} {tuple(x.shape)}"
