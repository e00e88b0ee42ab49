"""Attention at the model's sizes, 8 heads of 64; also PyTorch's own, on a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.forms import DEVICE, FORMS
from storm_fast.kernels import attention
from storm_fast.kernels.cost import Cost

H, K = 8, 64
DTYPE = torch.bfloat16


def sdpa(qkv_BT3HK: Tensor, dropout: float) -> Tensor:
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in qkv_BT3HK.unbind(2))
    fused = torch.nn.functional.scaled_dot_product_attention
    return fused(q_BHTK, k_BHTK, v_BHTK, dropout_p=dropout, is_causal=True).transpose(1, 2)


@pytest.mark.parametrize("form", [*FORMS, "sdpa"] if DEVICE.type == "cuda" else FORMS)
@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["plain", "dropout"])
def bench_train(timed: Callable[..., None], dropout: float, form: str) -> None:
    B, T = 16, 64
    qkv_BT3HK = torch.randn(B, T, 3, H, K, device=DEVICE).to(DTYPE).requires_grad_()
    grad_BTHK = torch.randn(B, T, H, K, device=DEVICE).to(DTYPE)
    attend = sdpa if form == "sdpa" else attention.attend
    size = B * T * H * K * DTYPE.itemsize
    # Two products forward, five backward, over the lower triangle; qkv read twice, its gradient written, three of out.
    cost = Cost(flops=7 * B * H * T * (T + 1) * K, bytes=12 * size)
    timed(form, lambda: torch.autograd.grad(attend(qkv_BT3HK, dropout), qkv_BT3HK, grad_BTHK), cost)


@pytest.mark.parametrize("form", FORMS)
def bench_prefill(timed: Callable[..., None], form: str) -> None:
    B, T, S = 1024, 8, 24
    qkv_BT3HK = torch.randn(B, T, 3, H, K, device=DEVICE).to(DTYPE)
    k_BHSK, v_BHSK = (torch.zeros(B, H, S, K, device=DEVICE, dtype=DTYPE) for _ in range(2))
    size = B * T * H * K * DTYPE.itemsize
    cost = Cost(flops=2 * B * H * T * (T + 1) * K, bytes=6 * size)
    timed(form, lambda: attention.prefill(qkv_BT3HK, k_BHSK, v_BHSK), cost)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("position", [8, 23], ids=["first", "last"])
def bench_step(timed: Callable[..., None], position: int, form: str) -> None:
    B, S = 1024, 24
    qkv_B3HK = torch.randn(B, 3, H, K, device=DEVICE).to(DTYPE)
    k_BHSK, v_BHSK = (torch.zeros(B, H, S, K, device=DEVICE, dtype=DTYPE) for _ in range(2))
    size = B * H * K * DTYPE.itemsize
    cost = Cost(flops=4 * B * H * (position + 1) * K, bytes=(3 + 2 * position + 2 + 1) * size)
    timed(form, lambda: attention.step(qkv_B3HK, k_BHSK, v_BHSK, position), cost)
