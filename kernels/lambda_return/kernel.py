"""The lambda-return as one associative scan: a program holds the whole horizon of some trajectories."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 512  # elements a program holds at once


@triton.jit
def _compose(slope, offset, next_slope, next_offset):
    """Two maps x -> slope x + offset in a row, the later step's first: the scan runs from the end of the horizon."""
    return slope * next_slope, next_slope * offset + next_offset


@triton.jit
def _multiply(a, b):
    return a * b


@triton.jit
def _return_fwd(
    reward_ptr,
    end_ptr,
    value_ptr,
    out_ptr,
    B,
    T: tl.constexpr,
    GAMMA: tl.constexpr,
    LAM: tl.constexpr,
    NEXT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    t = tl.arange(0, BLOCK_T)
    is_kept_BT, offset_BT = (b < B)[:, None] & (t < T)[None, :], b[:, None] * T + t[None, :]
    reward_BT = tl.load(reward_ptr + offset_BT, mask=is_kept_BT, other=0.0).to(tl.float32)
    end_BT = tl.load(end_ptr + offset_BT, mask=is_kept_BT, other=0.0).to(tl.float32)
    # mutation lambda_return-bootstraps-swapped
    value_BT = tl.load(value_ptr + b[:, None] * (T + 1) + t[None, :] + NEXT, mask=is_kept_BT, other=0.0)
    last_B = tl.load(value_ptr + b * (T + 1) + T, mask=b < B, other=0.0).to(tl.float32)
    discount_BT = GAMMA * (1.0 - end_BT)
    offset_of_BT = reward_BT + discount_BT * (1 - LAM) * value_BT.to(tl.float32)  # mutation lambda_return-factor-1
    slope_BT = discount_BT * LAM
    # Steps beyond the horizon must change nothing: they are the identity map.
    slope_BT = tl.where((t < T)[None, :], slope_BT, 1.0)  # mutation lambda_return-padding-identity
    # mutation lambda_return-scan-order
    slope_BT, shift_BT = tl.associative_scan((slope_BT, offset_of_BT), 1, _compose, reverse=True)
    tl.store(out_ptr + offset_BT, slope_BT * last_B[:, None] + shift_BT, mask=is_kept_BT)


@triton.jit
def _reach_fwd(end_ptr, out_ptr, B, T: tl.constexpr, GAMMA: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    t = tl.arange(0, BLOCK_T)
    is_kept_BT, offset_BT = (b < B)[:, None] & (t < T)[None, :], b[:, None] * T + t[None, :]
    has_before_BT = is_kept_BT & (t > 0)[None, :]
    end_BT = tl.load(end_ptr + offset_BT - 1, mask=has_before_BT, other=0.0).to(tl.float32)  # mutation reach-an-end
    discount_BT = tl.where(has_before_BT, GAMMA * (1.0 - end_BT), 1.0)
    tl.store(out_ptr + offset_BT, tl.associative_scan(discount_BT, 1, _multiply), mask=is_kept_BT)


def _blocks(T: int) -> dict[str, int]:
    """Whole horizons, as many as fill a tile."""
    BLOCK_T = triton.next_power_of_2(T)
    return {"BLOCK_B": max(1, _TILE // BLOCK_T), "BLOCK_T": BLOCK_T}


def return_fwd(reward_BT: Tensor, end_BT: Tensor, value_BS: Tensor, gamma: float, lam: float, is_next: bool) -> Tensor:
    """The lambda-return, float32 [B, T]."""
    B, T = reward_BT.shape
    return_BT = torch.empty((B, T), dtype=torch.float32, device=reward_BT.device)
    blocks = _blocks(T)
    grid = (triton.cdiv(B, blocks["BLOCK_B"]),)
    inputs = (reward_BT.contiguous(), end_BT.contiguous(), value_BS.contiguous())
    _return_fwd[grid](*inputs, return_BT, B, T, gamma, lam, int(is_next), **blocks, num_warps=1)
    return return_BT


def reach_fwd(end_BT: Tensor, gamma: float) -> Tensor:
    """The discounted chance that each step is reached, float32 [B, T]."""
    B, T = end_BT.shape
    weight_BT = torch.empty((B, T), dtype=torch.float32, device=end_BT.device)
    blocks = _blocks(T)
    grid = (triton.cdiv(B, blocks["BLOCK_B"]),)
    _reach_fwd[grid](end_BT.contiguous(), weight_BT, B, T, gamma, **blocks, num_warps=1)
    return weight_BT
