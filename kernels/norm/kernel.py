"""Layer normalisation: a program holds whole rows, so that mean, deviation and result take one read of each input."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # elements a program holds at once: 16 a thread of 4 warps
_PROGRAMS = 256  # at most, of backward: each leaves a row of partial sums, which one launch then adds
_COLUMNS = 32  # that a program of the reduction adds up: 128 bytes of each row


@triton.jit
def _load_sum(
    x_ptr,
    residual_ptr,
    n,
    d,
    is_kept_ND,
    M,
    D: tl.constexpr,
    RESIDUAL: tl.constexpr,
    REPEAT: tl.constexpr,
):
    """x + residual in float32, whose rows repeat after M; 0 where there are none."""
    sum_ND = tl.load(x_ptr + n[:, None] * D + d[None, :], mask=is_kept_ND, other=0.0).to(tl.float32)
    if RESIDUAL:
        # In 32 bits, which rows fit where offsets may not: the remainder of 64 is a call, which spills on sm_100.
        m = (n.to(tl.int32) % M).to(tl.int64) if REPEAT else n  # mutation norm-residual-wrong
        # mutation norm-residual-forgotten
        sum_ND += tl.load(residual_ptr + m[:, None] * D + d[None, :], mask=is_kept_ND, other=0.0).to(tl.float32)
    return sum_ND


@triton.jit
def _norm_fwd(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    mean_ptr,
    rstd_ptr,
    N,
    M,
    eps,
    D: tl.constexpr,
    RESIDUAL: tl.constexpr,
    REPEAT: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    is_row_N = n < N
    is_kept_ND = is_row_N[:, None] & (d < D)[None, :]
    sum_ND = _load_sum(x_ptr, residual_ptr, n, d, is_kept_ND, M, D, RESIDUAL, REPEAT)
    weight_D = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    bias_D = tl.load(bias_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    mean_N = tl.sum(sum_ND, 1) / D
    # Squares of deviations, not of values: their difference to the squared mean would cancel where the mean is large.
    off_ND = tl.where((d < D)[None, :], sum_ND - mean_N[:, None], 0.0)  # mutation norm-masked-columns
    rstd_N = 1.0 / tl.sqrt(tl.sum(off_ND * off_ND, 1) / D + eps)  # mutation norm-eps-missing
    y_ND = off_ND * rstd_N[:, None] * weight_D[None, :] + bias_D[None, :]
    if RELU:
        # mutation norm-nan-hidden
        y_ND = tl.where(y_ND <= 0, 0.0, y_ND)  # a NaN stays one, where a plain maximum would hide it
    # mutation norm-columns-tail
    tl.store(out_ptr + n[:, None] * D + d[None, :], y_ND.to(out_ptr.dtype.element_ty), mask=is_kept_ND)
    tl.store(mean_ptr + n, mean_N, mask=is_row_N)  # mutation norm-rows-tail
    tl.store(rstd_ptr + n, rstd_N, mask=is_row_N)


@triton.jit
def _norm_bwd(
    grad_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    to_x_ptr,
    to_residual_ptr,
    partial_ptr,
    N,
    M,
    steps,
    D: tl.constexpr,
    RESIDUAL: tl.constexpr,
    REPEAT: tl.constexpr,
    RELU: tl.constexpr,
    APART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    weight_D = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    bias_D = tl.load(bias_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    # Summed over this program's steps here and over the rows of a tile once, at the end.
    to_weight_ND = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    to_bias_ND = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for i in range(steps):
        n = (p * steps + i) * BLOCK_N + tl.arange(0, BLOCK_N)  # mutation norm-backward-steps
        is_row_N = n < N
        is_kept_ND = is_row_N[:, None] & (d < D)[None, :]
        offset_ND = n[:, None] * D + d[None, :]
        # mutation norm-backward-weight-gradient
        grad_ND = tl.load(grad_ptr + offset_ND, mask=is_kept_ND, other=0.0).to(tl.float32)
        sum_ND = _load_sum(x_ptr, residual_ptr, n, d, is_kept_ND, M, D, RESIDUAL, REPEAT)
        mean_N = tl.load(mean_ptr + n, mask=is_row_N, other=0.0)
        rstd_N = tl.load(rstd_ptr + n, mask=is_row_N, other=0.0)
        unit_ND = tl.where(is_kept_ND, (sum_ND - mean_N[:, None]) * rstd_N[:, None], 0.0)
        if RELU:
            # mutation norm-backward-gradient
            grad_ND = tl.where(unit_ND * weight_D[None, :] + bias_D[None, :] <= 0, 0.0, grad_ND)
        to_weight_ND += grad_ND * unit_ND
        to_bias_ND += grad_ND  # mutation norm-backward-only
        to_unit_ND = grad_ND * weight_D[None, :]  # mutation norm-backward-weight
        along_N = tl.sum(to_unit_ND * unit_ND, 1) / D
        level_N = tl.sum(to_unit_ND, 1) / D
        # mutation norm-backward-mean
        out_ND = rstd_N[:, None] * (to_unit_ND - level_N[:, None] - unit_ND * along_N[:, None])
        tl.store(to_x_ptr + offset_ND, out_ND.to(to_x_ptr.dtype.element_ty), mask=is_kept_ND)
        if APART:  # mutation norm-backward-residual
            tl.store(to_residual_ptr + offset_ND, out_ND.to(to_residual_ptr.dtype.element_ty), mask=is_kept_ND)
    partial_ptr += p * 2 * D
    tl.store(partial_ptr + d, tl.sum(to_weight_ND, 0), mask=d < D)
    tl.store(partial_ptr + D + d, tl.sum(to_bias_ND, 0), mask=d < D)


@triton.jit
def _norm_reduce(
    partial_ptr,
    to_weight_ptr,
    to_bias_ptr,
    P,
    D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.arange(0, BLOCK_P)
    is_kept_PD = (p < P)[:, None] & (d < D)[None, :]
    offset_PD = p[:, None] * (2 * D) + d[None, :]
    to_weight_PD = tl.load(partial_ptr + offset_PD, mask=is_kept_PD, other=0.0)
    to_bias_PD = tl.load(partial_ptr + D + offset_PD, mask=is_kept_PD, other=0.0)  # mutation norm-backward-partial
    tl.store(to_weight_ptr + d, tl.sum(to_weight_PD, 0), mask=d < D)
    tl.store(to_bias_ptr + d, tl.sum(to_bias_PD, 0), mask=d < D)


def _blocks(D: int) -> dict[str, int]:
    """Whole rows, as many as fill a tile; warps so that a thread holds at most 16 elements of it."""
    BLOCK_D = triton.next_power_of_2(D)
    return {"BLOCK_N": max(1, _TILE // BLOCK_D), "BLOCK_D": BLOCK_D, "num_warps": 8 if BLOCK_D > _TILE else 4}


def layer_norm_fwd(
    x_ND: Tensor,
    residual_MD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    relu: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result in `dtype`, and each row's mean and 1 / sqrt(var + eps), float32 [N]; M divides N."""
    N, D = x_ND.shape
    out_ND = torch.empty((N, D), dtype=dtype, device=x_ND.device)
    mean_N = torch.empty((N,), dtype=torch.float32, device=x_ND.device)
    rstd_N = torch.empty((N,), dtype=torch.float32, device=x_ND.device)
    M = N if residual_MD is None else residual_MD.shape[0]
    blocks = _blocks(D)
    x_ND = x_ND.contiguous()
    _norm_fwd[(triton.cdiv(N, blocks["BLOCK_N"]),)](
        x_ND,
        x_ND if residual_MD is None else residual_MD.contiguous(),
        weight_D.contiguous(),
        bias_D.contiguous(),
        out_ND,
        mean_N,
        rstd_N,
        N,
        M,
        eps,
        D,
        RESIDUAL=residual_MD is not None,
        REPEAT=M != N,
        RELU=relu,
        **blocks,
    )
    return out_ND, mean_N, rstd_N


def layer_norm_bwd(
    grad_ND: Tensor,
    x_ND: Tensor,
    residual_MD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor,
    mean_N: Tensor,
    rstd_N: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of the residual, of weight and of bias; the last two float32.

    The residual's are those of all N rows, in its dtype; [0, D] where x has its dtype, since they are x's then.
    """
    N, D = x_ND.shape
    device = x_ND.device
    is_apart = residual_MD is not None and residual_MD.dtype != x_ND.dtype
    to_x_ND = torch.empty((N, D), dtype=x_ND.dtype, device=device)
    dtype = x_ND.dtype if residual_MD is None else residual_MD.dtype
    to_residual_ND = torch.empty((N if is_apart else 0, D), dtype=dtype, device=device)
    to_weight_D = torch.empty((D,), dtype=torch.float32, device=device)
    to_bias_D = torch.empty((D,), dtype=torch.float32, device=device)
    M = N if residual_MD is None else residual_MD.shape[0]
    blocks = _blocks(D)
    tiles = triton.cdiv(N, blocks["BLOCK_N"])
    steps = triton.cdiv(tiles, _PROGRAMS)
    P = triton.cdiv(tiles, max(1, steps))
    partial_P2D = torch.empty((P, 2, D), dtype=torch.float32, device=device)
    x_ND = x_ND.contiguous()
    _norm_bwd[(P,)](
        grad_ND.contiguous(),
        x_ND,
        x_ND if residual_MD is None else residual_MD.contiguous(),
        weight_D.contiguous(),
        bias_D.contiguous(),
        mean_N,
        rstd_N,
        to_x_ND,
        to_residual_ND if is_apart else to_x_ND,
        partial_P2D,
        N,
        M,
        steps,
        D,
        RESIDUAL=residual_MD is not None,
        REPEAT=M != N,
        RELU=relu,
        APART=is_apart,
        **blocks,
    )
    _norm_reduce[(triton.cdiv(D, _COLUMNS),)](
        partial_P2D,
        to_weight_D,
        to_bias_D,
        P,
        D,
        BLOCK_P=triton.next_power_of_2(max(1, P)),
        BLOCK_D=_COLUMNS,
        num_warps=8,
    )
    return to_x_ND, to_residual_ND, to_weight_D, to_bias_D
