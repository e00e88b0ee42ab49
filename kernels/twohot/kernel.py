"""Symlog two-hot regression: one program holds whole rows of logits, so each pass reads them once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from storm_fast.kernels.twohot.reference import BOUND

_TILE = 1024  # elements a program holds at once: 8 a thread of 4 warps


@triton.jit
def _symlog(x):
    """sign(x) log(1 + |x|), to a rounding of 1: what it is placed between is larger."""
    log = tl.log(1.0 + tl.abs(x))
    return tl.where(x < 0, -log, log)  # mutation twohot-sign-symlog


@triton.jit
def _symexp(y):
    """sign(y) (exp(|y|) - 1), to a rounding of 1: y itself is a sum of terms of up to 20."""
    grown = tl.exp(tl.abs(y)) - 1.0  # mutation twohot-symexp-without
    return tl.where(y < 0, -grown, grown)


@triton.jit
def _bin(v, V: tl.constexpr, BOUND: tl.constexpr):
    """The centre of bin v, counted from the nearer end, as torch.linspace does."""
    v = v.to(tl.float32)
    SPACING: tl.constexpr = 2 * BOUND / (V - 1)
    return tl.where(v < V // 2, v * SPACING - BOUND, BOUND - (V - 1 - v) * SPACING)


@triton.jit
def _clamp(x, low, high):
    """x within [low, high]; a NaN stays one, where a plain minimum would hide it."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)  # mutation twohot-nan-hidden
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _encode(x_N, v, V: tl.constexpr, BOUND: tl.constexpr):
    """Two-hot rows [N, V] of symlog(x): the weights of the two bins around it, clamped to the outermost."""
    SPACING: tl.constexpr = 2 * BOUND / (V - 1)  # mutation twohot-v-bins
    # Twice the bound, so that the weight of a value beyond the bins is clamped to exactly 1; an infinity is no integer.
    y_N = _clamp(_symlog(x_N), -2 * BOUND, 2 * BOUND)
    # Rounding may put y just outside its interval; the weight is then 0 or 1 to within the same rounding. A NaN has no
    # integer: it goes to the last two bins, as in the reference, and stays in their weights.
    place_N = tl.where(y_N == y_N, (y_N + BOUND) / SPACING, V - 2.0)
    lower_N = tl.minimum(tl.maximum(place_N.to(tl.int32), 0), V - 2)
    upper_weight_N = _clamp((y_N - _bin(lower_N, V, BOUND)) / SPACING, 0.0, 1.0)  # mutation twohot-weights-clamped
    # mutation twohot-next-bin
    is_lower_NV, is_upper_NV = v[None, :] == lower_N[:, None], v[None, :] == lower_N[:, None] + 1
    return tl.where(is_upper_NV, upper_weight_N[:, None], tl.where(is_lower_NV, 1.0 - upper_weight_N[:, None], 0.0))


@triton.jit
def _load_logits(ptr, offset_NV, is_row_N, v, V: tl.constexpr):
    """Logits in float32; -inf beyond the last bin, 0 in rows beyond the last, which nobody stores."""
    logit_NV = tl.load(ptr + offset_NV, mask=is_row_N[:, None] & (v < V)[None, :], other=0.0).to(tl.float32)
    return tl.where((v < V)[None, :], logit_NV, -float("inf"))  # mutation twohot-masked-logits


@triton.jit
def _zero_margin(grad_NV, v, V: tl.constexpr):
    """The gradient of the logits; 0 behind the last bin, whatever the others are."""
    return tl.where((v < V)[None, :], grad_NV, 0.0)  # mutation twohot-margin-gradient


@triton.jit
def _loss_fwd(
    logits_ptr,
    target_ptr,
    loss_ptr,
    lse_ptr,
    N,
    V: tl.constexpr,
    W: tl.constexpr,
    BOUND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    v = tl.arange(0, BLOCK_V)
    is_row_N = n < N
    logit_NV = _load_logits(logits_ptr, n[:, None] * W + v[None, :], is_row_N, v, V)
    p_NV = _encode(tl.load(target_ptr + n, mask=is_row_N, other=0.0).to(tl.float32), v, V, BOUND)
    max_N = tl.max(logit_NV, 1)
    lse_N = max_N + tl.log(tl.sum(tl.exp(logit_NV - max_N[:, None]), 1))
    # Summed as p (lse - logit): bins without weight add exact zeros, also where a logit is -inf.
    loss_NV = p_NV * tl.where(p_NV > 0, lse_N[:, None] - logit_NV, 0.0)
    tl.store(loss_ptr + n, tl.sum(loss_NV, 1), mask=is_row_N)
    tl.store(lse_ptr + n, lse_N, mask=is_row_N)


@triton.jit
def _loss_bwd(
    logits_ptr,
    target_ptr,
    lse_ptr,
    grad_ptr,
    out_ptr,
    N,
    V: tl.constexpr,
    W: tl.constexpr,
    BOUND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    v = tl.arange(0, BLOCK_V)
    is_row_N, offset_NV = n < N, n[:, None] * W + v[None, :]
    logit_NV = _load_logits(logits_ptr, offset_NV, is_row_N, v, V)
    target_N = tl.load(target_ptr + n, mask=is_row_N, other=0.0).to(tl.float32)
    p_NV = _encode(target_N, v, V, BOUND)
    lse_N = tl.load(lse_ptr + n, mask=is_row_N, other=0.0)
    grad_N = tl.load(grad_ptr + n, mask=is_row_N, other=0.0)
    out_NV = grad_N[:, None] * (tl.exp(logit_NV - lse_N[:, None]) - p_NV)  # mutation twohot-backward-incoming
    # A target that is no number has no gradient in any bin, though its weights lie in two.
    out_NV = tl.where((target_N == target_N)[:, None], out_NV, float("nan"))
    is_kept_NV = is_row_N[:, None] & (v < W)[None, :]
    tl.store(out_ptr + offset_NV, _zero_margin(out_NV, v, V).to(out_ptr.dtype.element_ty), mask=is_kept_NV)


@triton.jit
def _encode_fwd(x_ptr, out_ptr, N, V: tl.constexpr, BOUND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    v = tl.arange(0, BLOCK_V)
    is_row_N = n < N
    p_NV = _encode(tl.load(x_ptr + n, mask=is_row_N, other=0.0).to(tl.float32), v, V, BOUND)
    tl.store(out_ptr + n[:, None] * V + v[None, :], p_NV, mask=is_row_N[:, None] & (v < V)[None, :])


@triton.jit
def _decode_fwd(
    logits_ptr,
    out_ptr,
    N,
    V: tl.constexpr,
    W: tl.constexpr,
    BOUND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    v = tl.arange(0, BLOCK_V)
    is_row_N = n < N
    logit_NV = _load_logits(logits_ptr, n[:, None] * W + v[None, :], is_row_N, v, V)
    e_NV = tl.exp(logit_NV - tl.max(logit_NV, 1)[:, None])
    p_NV = e_NV / tl.sum(e_NV, 1)[:, None]
    tl.store(out_ptr + n, _symexp(tl.sum(p_NV * _bin(v, V, BOUND)[None, :], 1)), mask=is_row_N)


@triton.jit
def _decode_bwd(
    logits_ptr,
    grad_ptr,
    out_ptr,
    N,
    V: tl.constexpr,
    W: tl.constexpr,
    BOUND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    v = tl.arange(0, BLOCK_V)
    is_row_N, offset_NV = n < N, n[:, None] * W + v[None, :]
    logit_NV = _load_logits(logits_ptr, offset_NV, is_row_N, v, V)
    e_NV = tl.exp(logit_NV - tl.max(logit_NV, 1)[:, None])
    p_NV = e_NV / tl.sum(e_NV, 1)[:, None]
    y_N = tl.sum(p_NV * _bin(v, V, BOUND)[None, :], 1)
    grad_N = tl.load(grad_ptr + n, mask=is_row_N, other=0.0) * tl.exp(tl.abs(y_N))  # mutation decode-backward-slope
    out_NV = grad_N[:, None] * p_NV * (_bin(v, V, BOUND)[None, :] - y_N[:, None])  # mutation decode-backward-expected
    is_kept_NV = is_row_N[:, None] & (v < W)[None, :]
    tl.store(out_ptr + offset_NV, _zero_margin(out_NV, v, V).to(out_ptr.dtype.element_ty), mask=is_kept_NV)


def _blocks(W: int) -> dict[str, int]:
    """Whole rows, as many as fill a tile."""
    BLOCK_V = triton.next_power_of_2(W)
    return {"BLOCK_N": max(1, _TILE // BLOCK_V), "BLOCK_V": BLOCK_V}


def loss_fwd(logits_NW: Tensor, target_N: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """The cross-entropy and the log of the softmax's denominator, float32 [N] each, of the first V logits."""
    N, W = logits_NW.shape
    loss_N = torch.empty((N,), dtype=torch.float32, device=logits_NW.device)
    lse_N = torch.empty((N,), dtype=torch.float32, device=logits_NW.device)
    blocks = _blocks(W)
    grid = (triton.cdiv(N, blocks["BLOCK_N"]),)
    _loss_fwd[grid](logits_NW.contiguous(), target_N.contiguous(), loss_N, lse_N, N, V, W, BOUND, **blocks)
    return loss_N, lse_N


def loss_bwd(grad_N: Tensor, logits_NW: Tensor, target_N: Tensor, lse_N: Tensor, V: int) -> Tensor:
    """The gradient of the logits, in their dtype."""
    N, W = logits_NW.shape
    out_NW = torch.empty((N, W), dtype=logits_NW.dtype, device=logits_NW.device)
    blocks = _blocks(W)
    grid = (triton.cdiv(N, blocks["BLOCK_N"]),)
    logits_NW, target_N = logits_NW.contiguous(), target_N.contiguous()
    _loss_bwd[grid](logits_NW, target_N, lse_N, grad_N.contiguous(), out_NW, N, V, W, BOUND, **blocks)
    return out_NW


def encode_fwd(x_N: Tensor, V: int) -> Tensor:
    """Two-hot rows, float32 [N, V]."""
    N = x_N.shape[0]
    p_NV = torch.empty((N, V), dtype=torch.float32, device=x_N.device)
    blocks = _blocks(V)
    _encode_fwd[(triton.cdiv(N, blocks["BLOCK_N"]),)](x_N.contiguous(), p_NV, N, V, BOUND, **blocks)
    return p_NV


def decode_fwd(logits_NW: Tensor, V: int) -> Tensor:
    """Expected values, float32 [N]."""
    N, W = logits_NW.shape
    x_N = torch.empty((N,), dtype=torch.float32, device=logits_NW.device)
    blocks = _blocks(W)
    _decode_fwd[(triton.cdiv(N, blocks["BLOCK_N"]),)](logits_NW.contiguous(), x_N, N, V, W, BOUND, **blocks)
    return x_N


def decode_bwd(grad_N: Tensor, logits_NW: Tensor, V: int) -> Tensor:
    """The gradient of the logits, in their dtype."""
    N, W = logits_NW.shape
    out_NW = torch.empty((N, W), dtype=logits_NW.dtype, device=logits_NW.device)
    blocks = _blocks(W)
    grid = (triton.cdiv(N, blocks["BLOCK_N"]),)
    _decode_bwd[grid](logits_NW.contiguous(), grad_N.contiguous(), out_NW, N, V, W, BOUND, **blocks)
    return out_NW
