"""Triton kernels for batch normalisation with the activation behind it, on images in channels_last; math in float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # elements a program holds at once: 16 a thread of 8 warps
_WIDEST = 64  # channels of a tile: 128 bytes of a pixel in bf16
_PROGRAMS = 512  # at most, that leave partial sums: about four for each multiprocessor of an H100
_COLUMNS = 8  # channels whose partial sums a program adds


@triton.jit
def _activated(u, SILU: tl.constexpr):
    """The activation; a NaN stays one, where a plain maximum would hide it."""
    return u * tl.sigmoid(u) if SILU else tl.where(u <= 0, 0.0, u)  # mutation batch_norm-nan-cut


@triton.jit
def _through(grad, u, SILU: tl.constexpr):
    """The gradient of the activation's argument u, from that of its result."""
    s = tl.sigmoid(u)
    # mutation batch_norm-silus-gradient
    return grad * s * (1.0 + u * (1.0 - s)) if SILU else tl.where(u <= 0, 0.0, grad)


@triton.jit
def _channels(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C: tl.constexpr):
    """What a tile's channels are normalised by."""
    mean_C, rstd_C = tl.load(mean_ptr + c, mask=c < C, other=0.0), tl.load(rstd_ptr + c, mask=c < C, other=0.0)
    weight_C, bias_C = tl.load(weight_ptr + c, mask=c < C, other=0.0), tl.load(bias_ptr + c, mask=c < C, other=0.0)
    return mean_C, rstd_C, weight_C, bias_C


@triton.jit
def _stats_fwd(
    x_ptr, partial_ptr, R, C: tl.constexpr, STEPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Of a program's rows, each channel's mean and sum of squared deviations: partial [P, 2, C].

    Sums are of differences to the program's first row, so that a large mean does not spoil the squares.
    """
    p, c = tl.program_id(0), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    start = p.to(tl.int64) * STEPS * BLOCK_R  # int64: 8,192 images have 2**28 elements
    shift_C = tl.load(x_ptr + start * C + c, mask=c < C, other=0.0).to(tl.float32)
    sum_RC = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    square_RC = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for i in range(STEPS):
        r = start + i * BLOCK_R + tl.arange(0, BLOCK_R)
        is_kept_RC = (r < R)[:, None] & (c < C)[None, :]
        x_RC = tl.load(x_ptr + r[:, None] * C + c[None, :], mask=is_kept_RC, other=0.0).to(tl.float32)
        off_RC = tl.where(is_kept_RC, x_RC - shift_C[None, :], 0.0)  # mutation batch_norm-rows-tail
        sum_RC += off_RC
        square_RC += off_RC * off_RC
    rows = tl.minimum(R - start, STEPS * BLOCK_R).to(tl.float32)
    sum_C = tl.sum(sum_RC, 0)
    tl.store(partial_ptr + p * 2 * C + c, shift_C + sum_C / rows, mask=c < C)  # mutation batch_norm-mean-without
    # mutation batch_norm-spread-program
    tl.store(partial_ptr + p * 2 * C + C + c, tl.sum(square_RC, 0) - sum_C * sum_C / rows, mask=c < C)


@triton.jit
def _stats_reduce(
    partial_ptr,
    mean_ptr,
    rstd_ptr,
    running_mean_ptr,
    running_var_ptr,
    R,
    P,
    ROWS,
    momentum,
    eps,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The statistics of all rows from those of the programs, and the running ones, in place."""
    p, c = tl.arange(0, BLOCK_P), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_kept_PC = (p < P)[:, None] & (c < C)[None, :]
    rows_P = tl.where(p < P, tl.minimum(R - p * ROWS, ROWS), 0).to(tl.float32)
    mean_PC = tl.load(partial_ptr + p[:, None] * 2 * C + c[None, :], mask=is_kept_PC, other=0.0)
    spread_PC = tl.load(partial_ptr + p[:, None] * 2 * C + C + c[None, :], mask=is_kept_PC, other=0.0)
    shift_C = tl.load(partial_ptr + c, mask=c < C, other=0.0)
    off_PC = tl.where(is_kept_PC, mean_PC - shift_C[None, :], 0.0)
    off_C = tl.sum(rows_P[:, None] * off_PC, 0) / R  # mutation batch_norm-programs-means
    between_PC = off_PC - off_C[None, :]
    spread_C = tl.sum(spread_PC + rows_P[:, None] * between_PC * between_PC, 0)  # mutation batch_norm-spread-between
    mean_C, var_C = shift_C + off_C, spread_C / R
    tl.store(mean_ptr + c, mean_C, mask=c < C)
    tl.store(rstd_ptr + c, 1.0 / tl.sqrt(var_C + eps), mask=c < C)
    old_mean_C = tl.load(running_mean_ptr + c, mask=c < C, other=0.0)
    old_var_C = tl.load(running_var_ptr + c, mask=c < C, other=0.0)
    # mutation batch_norm-running-mean
    tl.store(running_mean_ptr + c, old_mean_C + momentum * (mean_C - old_mean_C), mask=c < C)
    # mutation batch_norm-biased-running
    tl.store(running_var_ptr + c, old_var_C + momentum * (spread_C / (R - 1) - old_var_C), mask=c < C)


@triton.jit
def _apply_fwd(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    R,
    C: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_kept_RC, offset_RC = (r < R)[:, None] & (c < C)[None, :], r[:, None] * C + c[None, :]
    x_RC = tl.load(x_ptr + offset_RC, mask=is_kept_RC, other=0.0).to(tl.float32)
    mean_C, rstd_C, weight_C, bias_C = _channels(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C)
    u_RC = (x_RC - mean_C[None, :]) * (rstd_C * weight_C)[None, :] + bias_C[None, :]
    # mutation batch_norm-channels-tail
    tl.store(out_ptr + offset_RC, _activated(u_RC, SILU).to(out_ptr.dtype.element_ty), mask=is_kept_RC)


@triton.jit
def _sums_bwd(
    grad_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    partial_ptr,
    R,
    C: tl.constexpr,
    SILU: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of a program's rows, what adds to the gradients of weight and bias: partial [P, 2, C]."""
    p, c = tl.program_id(0), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_C, rstd_C, weight_C, bias_C = _channels(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C)
    to_weight_RC = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    to_bias_RC = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for i in range(STEPS):
        r = (p.to(tl.int64) * STEPS + i) * BLOCK_R + tl.arange(0, BLOCK_R)
        is_kept_RC, offset_RC = (r < R)[:, None] & (c < C)[None, :], r[:, None] * C + c[None, :]
        x_RC = tl.load(x_ptr + offset_RC, mask=is_kept_RC, other=0.0).to(tl.float32)
        grad_RC = tl.load(grad_ptr + offset_RC, mask=is_kept_RC, other=0.0).to(tl.float32)
        unit_RC = tl.where(is_kept_RC, (x_RC - mean_C[None, :]) * rstd_C[None, :], 0.0)
        grad_RC = _through(grad_RC, unit_RC * weight_C[None, :] + bias_C[None, :], SILU)
        to_weight_RC += grad_RC * unit_RC
        to_bias_RC += grad_RC  # mutation batch_norm-backward-gradient
    tl.store(partial_ptr + p * 2 * C + c, tl.sum(to_weight_RC, 0), mask=c < C)
    tl.store(partial_ptr + p * 2 * C + C + c, tl.sum(to_bias_RC, 0), mask=c < C)


@triton.jit
def _sums_reduce(
    partial_ptr, to_weight_ptr, to_bias_ptr, P, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    p, c = tl.arange(0, BLOCK_P), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_kept_PC, offset_PC = (p < P)[:, None] & (c < C)[None, :], p[:, None] * 2 * C + c[None, :]
    to_weight_PC = tl.load(partial_ptr + offset_PC, mask=is_kept_PC, other=0.0)
    to_bias_PC = tl.load(partial_ptr + C + offset_PC, mask=is_kept_PC, other=0.0)  # mutation batch_norm-backward-sums
    tl.store(to_weight_ptr + c, tl.sum(to_weight_PC, 0), mask=c < C)
    tl.store(to_bias_ptr + c, tl.sum(to_bias_PC, 0), mask=c < C)


@triton.jit
def _apply_bwd(
    grad_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    to_weight_ptr,
    to_bias_ptr,
    out_ptr,
    R,
    C: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_kept_RC, offset_RC = (r < R)[:, None] & (c < C)[None, :], r[:, None] * C + c[None, :]
    mean_C, rstd_C, weight_C, bias_C = _channels(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C)
    along_C = tl.load(to_weight_ptr + c, mask=c < C, other=0.0) / R
    level_C = tl.load(to_bias_ptr + c, mask=c < C, other=0.0) / R
    x_RC = tl.load(x_ptr + offset_RC, mask=is_kept_RC, other=0.0).to(tl.float32)
    grad_RC = tl.load(grad_ptr + offset_RC, mask=is_kept_RC, other=0.0).to(tl.float32)
    unit_RC = (x_RC - mean_C[None, :]) * rstd_C[None, :]
    grad_RC = _through(grad_RC, unit_RC * weight_C[None, :] + bias_C[None, :], SILU)
    # mutation batch_norm-backward-projection
    out_RC = (rstd_C * weight_C)[None, :] * (grad_RC - level_C[None, :] - unit_RC * along_C[None, :])
    tl.store(out_ptr + offset_RC, out_RC.to(out_ptr.dtype.element_ty), mask=is_kept_RC)


def _rows(x_NCYX: Tensor) -> Tensor:
    """Pixels by channels, a view where the image is in channels_last."""
    return x_NCYX.permute(0, 2, 3, 1).contiguous().view(-1, x_NCYX.shape[1])


def _like(out_RC: Tensor, x_NCYX: Tensor) -> Tensor:
    """The rows as an image, in the layout of another."""
    N, C, Y, X = x_NCYX.shape
    out_NCYX = out_RC.view(N, Y, X, C).permute(0, 3, 1, 2)
    return out_NCYX if x_NCYX.is_contiguous(memory_format=torch.channels_last) else out_NCYX.contiguous()


def _blocks(C: int) -> dict[str, int]:
    BLOCK_C = min(_WIDEST, triton.next_power_of_2(C))
    return {"BLOCK_R": _TILE // BLOCK_C, "BLOCK_C": BLOCK_C}


def _programs(R: int, C: int) -> tuple[int, int]:
    """Programs along the rows, none without one, and the tiles of each."""
    blocks = _blocks(C)
    tiles = triton.cdiv(R, blocks["BLOCK_R"])
    steps = triton.cdiv(tiles, max(1, _PROGRAMS // triton.cdiv(C, blocks["BLOCK_C"])))
    return triton.cdiv(tiles, steps), steps


def stats_fwd(
    x_NCYX: Tensor, running_mean_C: Tensor, running_var_C: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Each channel's mean and 1 / sqrt(var + eps), float32 [C]; moves the running statistics, in place."""
    x_RC = _rows(x_NCYX)
    R, C = x_RC.shape
    blocks, (P, steps) = _blocks(C), _programs(R, C)
    partial_P2C = torch.empty((P, 2, C), dtype=torch.float32, device=x_RC.device)
    mean_C = torch.empty((C,), dtype=torch.float32, device=x_RC.device)
    rstd_C = torch.empty((C,), dtype=torch.float32, device=x_RC.device)
    _stats_fwd[(P, triton.cdiv(C, blocks["BLOCK_C"]))](x_RC, partial_P2C, R, C, STEPS=steps, **blocks, num_warps=8)
    _stats_reduce[(triton.cdiv(C, _COLUMNS),)](
        partial_P2C,
        mean_C,
        rstd_C,
        running_mean_C,
        running_var_C,
        R,
        P,
        steps * blocks["BLOCK_R"],
        momentum,
        eps,
        C,
        BLOCK_P=triton.next_power_of_2(P),
        BLOCK_C=_COLUMNS,
    )
    return mean_C, rstd_C


def apply_fwd(x_NCYX: Tensor, mean_C: Tensor, rstd_C: Tensor, weight_C: Tensor, bias_C: Tensor, silu: bool) -> Tensor:
    """Normalised by these statistics, scaled, shifted and activated; dtype and layout of x."""
    x_RC = _rows(x_NCYX)
    R, C = x_RC.shape
    out_RC = torch.empty((R, C), dtype=x_RC.dtype, device=x_RC.device)
    blocks = _blocks(C)
    grid = (triton.cdiv(R, blocks["BLOCK_R"]), triton.cdiv(C, blocks["BLOCK_C"]))
    parameters = (weight_C.contiguous(), bias_C.contiguous())
    _apply_fwd[grid](x_RC, mean_C, rstd_C, *parameters, out_RC, R, C, SILU=silu, **blocks, num_warps=8)
    return _like(out_RC, x_NCYX)


def apply_bwd(
    grad_NCYX: Tensor,
    x_NCYX: Tensor,
    mean_C: Tensor,
    rstd_C: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, through the statistics too, of weight and of bias."""
    x_RC, grad_RC = _rows(x_NCYX), _rows(grad_NCYX)
    R, C = x_RC.shape
    blocks, (P, steps) = _blocks(C), _programs(R, C)
    partial_P2C = torch.empty((P, 2, C), dtype=torch.float32, device=x_RC.device)
    to_weight_C = torch.empty((C,), dtype=torch.float32, device=x_RC.device)
    to_bias_C = torch.empty((C,), dtype=torch.float32, device=x_RC.device)
    out_RC = torch.empty((R, C), dtype=x_RC.dtype, device=x_RC.device)
    inputs = (grad_RC, x_RC, mean_C, rstd_C, weight_C.contiguous(), bias_C.contiguous())
    columns = triton.cdiv(C, blocks["BLOCK_C"])
    _sums_bwd[(P, columns)](*inputs, partial_P2C, R, C, SILU=silu, STEPS=steps, **blocks, num_warps=8)
    _sums_reduce[(triton.cdiv(C, _COLUMNS),)](
        partial_P2C, to_weight_C, to_bias_C, P, C, BLOCK_P=triton.next_power_of_2(P), BLOCK_C=_COLUMNS
    )
    _apply_bwd[(triton.cdiv(R, blocks["BLOCK_R"]), columns)](
        *inputs, to_weight_C, to_bias_C, out_RC, R, C, SILU=silu, **blocks, num_warps=8
    )
    return _like(out_RC, x_NCYX), to_weight_C, to_bias_C
