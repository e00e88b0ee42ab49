"""The last transposed convolution and the error of the image that it would make, which is never written.

Forward writes the difference to the frame, as narrow as the image would be, and backward is what `first_conv` does with
frames: the gradient of x is a convolution of the difference with the same filters, the gradient of the filters the
product of the two over all pixels. Only its sources are numbers in the place of bytes, scaled by what arrives for each
frame.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from storm_fast.kernels.first_conv import kernel as conv

_BLOCK_M = 64  # pixels of x that a program computes the four pixels of an image of


@triton.jit
def _deconv_error_fwd(
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    obs_ptr,
    diff_ptr,
    part_ptr,
    colour_ptr,
    Y: tl.constexpr,
    X: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    MEAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """A tile of M pixels of x by Q: two rows, two columns, P colours of the image that each of them owns.

    An image's pixel depends on four pixels of x, these four on nine: nine products, whose filters have zeros where a
    pixel does not reach.
    """
    PIXELS: tl.constexpr = Y * X
    TILES: tl.constexpr = (PIXELS + BLOCK_M - 1) // BLOCK_M
    n = (tl.program_id(0) // TILES).to(tl.int64)
    m = (tl.program_id(0) % TILES) * BLOCK_M + tl.arange(0, BLOCK_M)
    c, q = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_Q)
    p_Q, px_Q, py_Q = q % P, (q // P) % 2, q // (2 * P)
    i_M, j_M = m // X, m % X
    y_MQ = tl.zeros([BLOCK_M, BLOCK_Q], tl.float32)
    for tap in tl.static_range(9):
        di = tap // 3 - 1
        dj = tap % 3 - 1
        # mutation deconv-border
        is_in_M = (m < PIXELS) & (i_M + di >= 0) & (i_M + di < Y) & (j_M + dj >= 0) & (j_M + dj < X)
        pixel_M = (i_M + di) * X + j_M + dj
        place_MC = pixel_M[:, None] * C + c[None, :] if CHANNELS_LAST else pixel_M[:, None] + c[None, :] * PIXELS
        is_x_MC = is_in_M[:, None] & (c < C)[None, :]
        x_MC = tl.load(x_ptr + n * (PIXELS * C) + place_MC, mask=is_x_MC, other=0.0)
        ky_Q, kx_Q = py_Q + 1 - 2 * di, px_Q + 1 - 2 * dj  # mutation deconv-taps
        is_w_Q = (q < 4 * P) & (ky_Q >= 0) & (ky_Q < 4) & (kx_Q >= 0) & (kx_Q < 4)
        at_CQ = c[:, None] * (16 * P) + ((ky_Q * 4 + kx_Q) * P + p_Q)[None, :]
        w_CQ = tl.load(weight_ptr + at_CQ, mask=(c < C)[:, None] & is_w_Q[None, :], other=0.0)
        y_MQ = tl.dot(x_MC, w_CQ.to(x_MC.dtype), y_MQ, input_precision="tf32x3")
    # mutation deconv-bias
    y_MQ += tl.load(bias_ptr + p_Q, mask=q < 4 * P, other=0.0).to(tl.float32)[None, :]
    pixel_MQ = ((2 * i_M)[:, None] + py_Q[None, :]) * (2 * X) + (2 * j_M)[:, None] + px_Q[None, :]
    o_MQ, is_kept_MQ = pixel_MQ * P + p_Q[None, :], (m < PIXELS)[:, None] & (q < 4 * P)[None, :]
    if MEAN:
        y_MQ += tl.load(mean_ptr + o_MQ, mask=is_kept_MQ, other=0.0)  # mutation deconv-mean
    frame = n * (4 * PIXELS * P)
    # mutation deconv-scaled
    d_MQ = y_MQ - tl.load(obs_ptr + frame + o_MQ, mask=is_kept_MQ, other=0).to(tl.float32) / 255.0
    d_MQ = tl.where(is_kept_MQ, d_MQ, 0.0)  # mutation deconv-tail
    tl.store(diff_ptr + frame + o_MQ, d_MQ.to(diff_ptr.dtype.element_ty), mask=is_kept_MQ)
    tl.store(part_ptr + tl.program_id(0), tl.sum(tl.sum(d_MQ * d_MQ, 1), 0))
    tl.store(colour_ptr + tl.program_id(0).to(tl.int64) * BLOCK_Q + q, tl.sum(d_MQ, 0))


@triton.jit
def _deconv_error_reduce(
    part_ptr,
    colour_ptr,
    error_ptr,
    sum_ptr,
    TILES: tl.constexpr,
    P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Of one frame: the sum of its tiles' errors, and of their differences by colour."""
    n = tl.program_id(0).to(tl.int64)
    t, q = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_Q)
    tl.store(error_ptr + n, tl.sum(tl.load(part_ptr + n * TILES + t, mask=t < TILES, other=0.0), 0))
    at_TQ = (n * TILES + t)[:, None] * BLOCK_Q + q[None, :]
    colour_TQ = tl.load(colour_ptr + at_TQ, mask=(t < TILES)[:, None] & (q < 4 * P)[None, :], other=0.0)
    colour_Q = tl.sum(colour_TQ, 0)
    for p in tl.static_range(P):
        tl.store(sum_ptr + n * P + p, tl.sum(tl.where(q % P == p, colour_Q, 0.0), 0))  # mutation deconv-colour


def error_fwd(
    x_NCYX: Tensor, weight_CPYX: Tensor, bias_P: Tensor, mean_YXP: Tensor | None, obs_NYXP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The error, float32 [N]; the difference to the frames, [N, 2 Y, 2 X, P] of x's dtype; its sums, float32 [N, P]."""
    N, C, Y, X = x_NCYX.shape
    P = weight_CPYX.shape[1]
    is_channels_last = x_NCYX.is_contiguous(memory_format=torch.channels_last)
    dense = x_NCYX.permute(0, 2, 3, 1) if is_channels_last else x_NCYX.contiguous()
    tiles, block_Q = triton.cdiv(Y * X, _BLOCK_M), max(16, triton.next_power_of_2(4 * P))
    obs_NYXP = obs_NYXP.contiguous()
    diff = torch.empty((N, 2 * Y, 2 * X, P), dtype=x_NCYX.dtype, device=x_NCYX.device)
    part, colour, error_N, sum_NP = (
        torch.empty(shape, dtype=torch.float32, device=x_NCYX.device)
        for shape in ((N * tiles,), (N * tiles, block_Q), (N,), (N, P))
    )
    _deconv_error_fwd[(N * tiles,)](
        dense,
        weight_CPYX.permute(0, 2, 3, 1).contiguous(),  # a view where the model's weights are in channels_last
        bias_P.contiguous(),
        obs_NYXP if mean_YXP is None else mean_YXP.contiguous(),
        obs_NYXP,
        diff,
        part,
        colour,
        Y,
        X,
        C,
        P,
        MEAN=mean_YXP is not None,
        CHANNELS_LAST=is_channels_last,
        BLOCK_M=_BLOCK_M,
        BLOCK_C=max(16, triton.next_power_of_2(C)),
        BLOCK_Q=block_Q,
        num_warps=4,
    )
    _deconv_error_reduce[(N,)](
        part, colour, error_N, sum_NP, tiles, P, BLOCK_T=triton.next_power_of_2(tiles), BLOCK_Q=block_Q
    )
    return error_N, diff, sum_NP


def x_bwd(scale_N: Tensor, diff_NYXP: Tensor, weight_CPYX: Tensor, is_channels_last: bool) -> Tensor:
    """The gradient of x, in the dtype of the difference: its convolution with the filters, times `scale` [N]."""
    return conv.first_conv_fwd(
        diff_NYXP, None, None, weight_CPYX, None, diff_NYXP.dtype, is_channels_last, "none", scale_N
    )


def weight_bwd(scale_N: Tensor, diff_NYXP: Tensor, x_NCYX: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the filters, [C, P, 4, 4] of `dtype`."""
    return conv.filters_bwd(x_NCYX, diff_NYXP, None, None, dtype, scale_N)
