"""Bias and ReLU behind a convolution in one pass: each element is read once and written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _bias_relu_fwd(
    x_ptr, bias_ptr, out_ptr, size, P: tl.constexpr, PIXELS: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr
):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # int64: 8,192 frames have 2**28 elements
    is_kept = o < size
    channel = (o // PIXELS) % P  # mutation conv_relu-bias-wrong
    # mutation conv_relu-bias-missing
    y = tl.load(x_ptr + o, mask=is_kept, other=0.0).to(tl.float32) + tl.load(bias_ptr + channel)
    # mutation conv_relu-clipped
    y = y * tl.sigmoid(y) if SILU else tl.where(y < 0, 0.0, y)  # keeps NaN
    tl.store(out_ptr + o, y.to(out_ptr.dtype.element_ty), mask=is_kept)  # mutation conv_relu-tail-masked


def bias_relu_fwd(x_NPYX: Tensor, bias_P: Tensor, silu: bool = False) -> Tensor:
    """relu(x + bias), or silu, summed in float32; x and the result are dense, channels_last or not."""
    P, Y, X = x_NPYX.shape[1:]
    is_channels_last = x_NPYX.is_contiguous(memory_format=torch.channels_last)
    dense = x_NPYX.permute(0, 2, 3, 1) if is_channels_last else x_NPYX.contiguous()
    out = torch.empty(tuple(dense.shape), dtype=x_NPYX.dtype, device=x_NPYX.device)
    pixels = 1 if is_channels_last else Y * X  # neighbours that share a channel
    _bias_relu_fwd[(triton.cdiv(x_NPYX.numel(), _BLOCK),)](
        dense, bias_P.float().contiguous(), out, x_NPYX.numel(), P, pixels, SILU=silu, BLOCK=_BLOCK, num_warps=8
    )
    return out.permute(0, 3, 1, 2) if is_channels_last else out
