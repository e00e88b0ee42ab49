"""Every kernel, as the model launches it at full size, compiles for every GPU we mean and stays within its budget."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
import triton
from torch import Tensor

from storm_fast.kernels.attention import kernel as attention
from storm_fast.kernels.categorical import kernel as categorical
from storm_fast.kernels.conv_relu import kernel as conv_relu
from storm_fast.kernels.frames import kernel as frames
from storm_fast.kernels.lambda_return import kernel as lambda_return
from storm_fast.kernels.norm import kernel as norm
from storm_fast.kernels.reconstruction import kernel as reconstruction
from storm_fast.kernels.twohot import kernel as twohot
from tests.aot.gate import (
    ARCHITECTURES,
    SHARED_KIB,
    Launch,
    compile_launch,
    launches_of,
    least_tensor_core_instructions,
)


class Budget(NamedTuple):
    """The most a kernel may use: a fence against regressions, not a target."""

    registers: int
    shared_kib: int = 1  # reductions across warps
    dots: bool = False  # whether each product is to be made of tensor-core instructions, counted by the gate


BUDGETS = {
    "_sample_fwd": Budget(64),  # keeping NaN takes 55 on sm_86
    "_sample_bwd": Budget(48),
    "_kl_fwd": Budget(48),
    "_kl_reduce": Budget(40),
    "_kl_bwd": Budget(72),
    "_attend_fwd": Budget(255, 99, dots=True),
    "_attend_bwd": Budget(255, 99, dots=True),
    "_mask_fwd": Budget(56),
    "_step_fwd": Budget(184),
    "_loss_fwd": Budget(48),
    "_loss_bwd": Budget(48),
    "_encode_fwd": Budget(40),
    "_decode_fwd": Budget(40),
    "_decode_bwd": Budget(48),
    "_return_fwd": Budget(80),
    "_reach_fwd": Budget(48),
    "_gather_fwd": Budget(72, 4),
    "_bias_relu_fwd": Budget(72),
    "_squared_fwd": Budget(48),
    "_squared_bwd": Budget(48, 8),
    "_norm_fwd": Budget(80, 8),
    "_norm_bwd": Budget(136, 8),
    "_norm_reduce": Budget(64),
}

# The main path on the cards it is meant for, held tighter than the widest case on the oldest card allows.
NARROW = {
    ("attention-bf16", "_attend_fwd", 90): Budget(96, 24, dots=True),
    ("attention-bf16", "_attend_bwd", 90): Budget(144, 32, dots=True),
    ("rollout-bf16", "_attend_fwd", 90): Budget(48, 2, dots=True),
    ("rollout-bf16", "_step_fwd", 90): Budget(136),
}

# Triton 3.6, the oldest that we support, gives the prefill twice the shared memory of 3.9.
NARROW_36 = NARROW | {("rollout-bf16", "_attend_fwd", 90): Budget(48, 4, dots=True)}

# The one case that 3.6 spills, and how often: float32, twice the model's longest and twice its widest, on sm_80.
SPILLS_36 = {("attention-fp32-longest-widest", "_attend_bwd", 80): 7}


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def f32(*shape: int) -> Tensor:
    return zeros(*shape, dtype=torch.float32)


def _sample(dtype: torch.dtype) -> None:
    logits_NC, u_N = zeros(1024, 32, dtype=dtype), f32(1024)
    categorical.sample_fwd(logits_NC, u_N, 0.01)
    categorical.sample_bwd(logits_NC, logits_NC, 0.01)


def _draw() -> None:
    categorical.draw_fwd(zeros(1024, 18), f32(1024), 0.0)


def _kl(dtype: torch.dtype) -> None:
    whole_BTGC = zeros(16, 64, 32, 32, dtype=dtype)
    post_BTGC, prior_BTGC = whole_BTGC[:, 1:], whole_BTGC[:, :-1]
    for per_step in (False, True):
        out_3, kl_N = categorical.kl_fwd(post_BTGC, prior_BTGC, 0.01, 1.0, per_step)
        categorical.kl_bwd(out_3, post_BTGC, prior_BTGC, out_3, kl_N, 0.01, 1.0, per_step)


def _loss(dtype: torch.dtype) -> None:
    logits_NV, target_N = zeros(1024, 255, dtype=dtype), f32(1024)
    loss_N, lse_N = twohot.loss_fwd(logits_NV, target_N)
    twohot.loss_bwd(loss_N, logits_NV, target_N, lse_N)
    twohot.decode_fwd(logits_NV)
    twohot.decode_bwd(loss_N, logits_NV)


def _return() -> None:
    reward_BT, value_BS = f32(1024, 16), f32(1024, 17)
    for is_next in (False, True):
        lambda_return.return_fwd(reward_BT, reward_BT, value_BS, 0.985, 0.95, is_next)
    lambda_return.reach_fwd(reward_BT, 0.985)


def _attention(dtype: torch.dtype, B: int, T: int, K: int, dropout: float) -> None:
    qkv_BT3HK, seed = zeros(B, T, 3, 8, K, dtype=dtype), zeros(dtype=torch.int64)
    out_BTHK, lse_BHT = attention.attend_fwd(qkv_BT3HK, seed, dropout)
    attention.attend_bwd(out_BTHK, qkv_BT3HK, seed, out_BTHK, lse_BHT, dropout)


def _rollout(dtype: torch.dtype) -> None:
    qkv_BT3HK, cache_BHSK = zeros(1024, 8, 3, 8, 64, dtype=dtype), zeros(1024, 8, 24, 64, dtype=dtype)
    attention.prefill_fwd(qkv_BT3HK, cache_BHSK, cache_BHSK)
    for position in (8, 16):
        attention.step_fwd(qkv_BT3HK[:, 0], cache_BHSK, cache_BHSK, position)


def _act() -> None:
    qkv_B3HK, cache_BHSK = zeros(4, 3, 8, 64), zeros(4, 8, 64, 64)
    attention.step_fwd(qkv_B3HK, cache_BHSK, cache_BHSK, zeros(4, dtype=torch.int64))
    attention.mask_fwd(zeros(dtype=torch.int64), 16, 8, 64, 0.1)


def _frames() -> None:
    frames_MYXP, index_N = zeros(64, 64, 64, 3, dtype=torch.uint8), zeros(64, dtype=torch.int64)
    frames.gather_fwd(frames_MYXP, index_N, None, torch.bfloat16, True)
    frames.gather_fwd(frames_MYXP, None, f32(64, 64, 3), torch.float32, False)


def _conv_relu() -> None:
    """The largest and the smallest result of a rollout's contexts, a hundredth of their frames."""
    for size, dtype in (((82, 32, 32, 32), torch.bfloat16), ((82, 256, 4, 4), torch.float32)):
        conv_relu.bias_relu_fwd(zeros(*size, dtype=dtype), f32(size[1]))
        conv_relu.bias_relu_fwd(zeros(*size, dtype=dtype).contiguous(memory_format=torch.channels_last), f32(size[1]))


def _reconstruction(dtype: torch.dtype, is_channels_last: bool) -> None:
    obs_NYXP = zeros(1024, 64, 64, 3, dtype=torch.uint8)
    image_NPYX = zeros(1024, 64, 64, 3, dtype=dtype).permute(0, 3, 1, 2)
    reconstruction.squared_fwd(image_NPYX, obs_NYXP, is_channels_last)
    reconstruction.squared_bwd(f32(1024), image_NPYX, obs_NYXP, is_channels_last)


def _norm(dtype: torch.dtype, rows: tuple[int, ...], D: int, relu: bool, residual: Tensor | None) -> None:
    weight_D = f32(D)
    for N in rows:
        x_ND = zeros(N, D, dtype=dtype)
        added_MD = zeros(N, D, dtype=dtype) if residual is None and not relu else residual
        y_ND, mean_N, rstd_N = norm.layer_norm_fwd(x_ND, added_MD, weight_D, weight_D, 1e-6, relu, dtype)
        norm.layer_norm_bwd(y_ND, x_ND, added_MD, weight_D, weight_D, mean_N, rstd_N, relu)


CASES: dict[str, Callable[[], None]] = {
    "sample-bf16": lambda: _sample(torch.bfloat16),
    "sample-fp32": lambda: _sample(torch.float32),
    "draw": _draw,
    "kl-bf16": lambda: _kl(torch.bfloat16),
    "kl-fp32": lambda: _kl(torch.float32),
    "twohot-bf16": lambda: _loss(torch.bfloat16),
    "twohot-fp32": lambda: _loss(torch.float32),
    "twohot-encode": lambda: twohot.encode_fwd(f32(1024), 255),
    "lambda-return": _return,
    "attention-bf16": lambda: _attention(torch.bfloat16, 16, 64, 64, 0.1),
    "attention-fp16": lambda: _attention(torch.float16, 16, 64, 64, 0.1),
    "attention-fp32": lambda: _attention(torch.float32, 16, 64, 64, 0.1),
    "attention-bf16-longest-widest": lambda: _attention(torch.bfloat16, 16, 128, 128, 0.1),
    "attention-fp32-longest-widest": lambda: _attention(torch.float32, 16, 128, 128, 0.1),
    "rollout-bf16": lambda: _rollout(torch.bfloat16),
    "rollout-fp32": lambda: _rollout(torch.float32),
    "act": _act,
    "frames": _frames,
    "conv-relu": _conv_relu,
    "reconstruction-bf16": lambda: _reconstruction(torch.bfloat16, True),
    "reconstruction-fp32": lambda: _reconstruction(torch.float32, False),
    # Imagination, contexts and training of the model, and the agent's 16 or 17 steps of 1,024.
    "norm-bf16-relu": lambda: _norm(torch.bfloat16, (1, 1024, 8192, 16384, 17408), 512, True, None),
    "norm-bf16-residual": lambda: _norm(torch.bfloat16, (1, 1024, 8192), 512, False, None),
    "norm-bf16-position": lambda: _norm(torch.bfloat16, (1024,), 512, False, f32(64, 512)),
    "norm-bf16-position-of-a-step": lambda: _norm(torch.bfloat16, (1024,), 512, False, f32(1, 512)),
    "norm-fp32-relu": lambda: _norm(torch.float32, (1, 1024, 16384), 512, True, None),
    "norm-fp32-residual": lambda: _norm(torch.float32, (1, 1024, 8192), 512, False, None),
    "norm-bf16-widest": lambda: _norm(torch.bfloat16, (1024,), 4096, False, None),
    "norm-fp32-widest": lambda: _norm(torch.float32, (1024,), 4096, False, f32(64, 4096)),
    "norm-fp32-odd": lambda: _norm(torch.float32, (1023,), 1000, False, None),
    "norm-fp32-narrow": lambda: _norm(torch.float32, (1024,), 7, True, None),
}


@cache
def recorded(case: str) -> list[Launch]:
    return launches_of(CASES[case])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES)
def test_compiles_within_its_budget(case: str, architecture: int) -> None:
    is_36 = triton.__version__.startswith("3.6.")
    narrow, spilling = (NARROW_36, SPILLS_36) if is_36 else (NARROW, {})
    for launch in recorded(case):
        compiled = compile_launch(launch, architecture)
        key = case, launch.name, architecture
        budget, spills = narrow.get(key, BUDGETS[launch.name]), spilling.get(key, 0)
        told = f"{launch.name} for sm_{architecture}: {compiled}"
        assert compiled.stack_bytes <= 4 * spills, told
        assert compiled.spills <= spills, told
        assert compiled.registers <= budget.registers, told
        assert compiled.shared_bytes <= 1024 * min(budget.shared_kib, SHARED_KIB[architecture]), told
        if budget.dots:
            least = least_tensor_core_instructions(launch, architecture)
            assert compiled.tensor_core_instructions >= least, f"want at least {least} tensor-core instructions; {told}"
        else:
            assert compiled.tensor_core_instructions == 0, told


def test_every_kernel_is_compiled() -> None:
    assert {launch.name for case in CASES for launch in recorded(case)} == set(BUDGETS)
