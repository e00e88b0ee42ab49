"""Attention at the model's sizes, 8 heads of 64, beside PyTorch's fused attention and FlexAttention."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as fused

from bench.conftest import Compare
from bench.instrument.forms import DEVICE, OPERATION, in_forms
from bench.instrument.harness import Subject, operation_forms
from storm_fast.kernels import attention
from storm_fast.kernels.cost import Cost

H, K = 8, 64
DTYPE = torch.bfloat16


def sdpa(qkv_BT3HK: Tensor, dropout: float) -> Tensor:
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in qkv_BT3HK.unbind(2))
    return fused(q_BHTK, k_BHTK, v_BHTK, dropout_p=dropout, is_causal=True).transpose(1, 2)


@cache
def flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # here, since it loads a compiler

    return torch.compile(flex_attention, dynamic=False)


@cache
def causal(T: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda _b, _h, q, k: q >= k, None, None, T, T, device=DEVICE)


def flex(qkv_BT3HK: Tensor) -> Tensor:
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in qkv_BT3HK.unbind(2))
    out_BHTK: Tensor = flex_attention()(q_BHTK, k_BHTK, v_BHTK, block_mask=causal(qkv_BT3HK.shape[1]))
    return out_BHTK.transpose(1, 2)


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(DTYPE)


@in_forms(*OPERATION, "sdpa", "flex")
@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["plain", "dropout"])
def bench_train(compare: Compare, dropout: float, form: str) -> None:
    B, T = 16, 64

    def gradient(attend: Any) -> Any:
        return lambda qkv, grad: torch.autograd.grad(attend(qkv), qkv, grad)

    def forms(p: float) -> dict[str, Any]:
        peers = {"sdpa": gradient(lambda qkv: sdpa(qkv, p)), "flex": gradient(flex)}
        return operation_forms(gradient(lambda qkv: attention.attend(qkv, p)), **peers)

    def subject() -> Subject:
        size = B * T * H * K * DTYPE.itemsize
        return Subject(
            inputs=lambda: (tokens(B, T, 3, H, K).requires_grad_(), tokens(B, T, H, K)),
            forms=forms(dropout),
            # Two products forward, five backward, over the lower triangle; qkv read twice, its gradient written, three
            # of the size of `out`.
            cost=Cost(flops=7 * B * H * T * (T + 1) * K, bytes=12 * size),
            compared=forms(0.0),  # each form draws dropout from a stream of its own
            # Gradients pass through probabilities and their gradient, each rounded to bf16 where a form keeps them so.
            tolerance=2e-2,
            absent={"flex": "FlexAttention has no dropout"} if dropout > 0 else {},
        )

    compare(f"attention, forward and backward, {B} x {T}, dropout {dropout}", form, subject)


@in_forms(*OPERATION, "sdpa")
@pytest.mark.parametrize("B", [1, 16], ids=["one", "many"])
def bench_act(compare: Compare, B: int, form: str) -> None:
    """What acting runs: forward alone, over the newest 16 steps of each game."""
    T = 16

    def subject() -> Subject:
        return Subject(
            inputs=lambda: (tokens(B, T, 3, H, K),),
            forms=operation_forms(attention.attend, sdpa=lambda qkv: sdpa(qkv, 0.0)),
            cost=Cost(flops=2 * B * H * T * (T + 1) * K, bytes=4 * B * T * H * K * DTYPE.itemsize),
        )

    compare(f"attention, forward, {B} x {T}", form, subject)


@in_forms(*OPERATION, "sdpa")
def bench_prefill(compare: Compare, form: str) -> None:
    B, T, S = 1024, 8, 24

    def peer(qkv_BT3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for cache_BHSK, x_BTHK in zip((k_BHSK, v_BHSK), qkv_BT3HK.unbind(2)[1:], strict=True):
            cache_BHSK[:, :, :T] = x_BTHK.transpose(1, 2)
        return sdpa(qkv_BT3HK, 0.0), k_BHSK, v_BHSK

    def subject() -> Subject:
        size = B * T * H * K * DTYPE.itemsize
        return Subject(
            inputs=lambda: (tokens(B, T, 3, H, K), tokens(B, H, S, K), tokens(B, H, S, K)),
            forms=operation_forms(lambda qkv, k, v: (attention.prefill(qkv, k, v), k, v), sdpa=peer),
            cost=Cost(flops=2 * B * H * T * (T + 1) * K, bytes=6 * size),
        )

    compare(f"attention, prefill, {B} x {T}", form, subject)


@in_forms(*OPERATION, "sdpa")
@pytest.mark.parametrize("position", [8, 23], ids=["first", "last"])
def bench_step(compare: Compare, position: int, form: str) -> None:
    B, S = 1024, 24

    def peer(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BHK, k_BHSK[:, :, position], v_BHSK[:, :, position] = qkv_B3HK.unbind(1)
        seen = slice(0, position + 1)
        return fused(q_BHK[:, :, None], k_BHSK[:, :, seen], v_BHSK[:, :, seen])[:, :, 0], k_BHSK, v_BHSK

    def subject() -> Subject:
        size = B * H * K * DTYPE.itemsize
        return Subject(
            inputs=lambda: (tokens(B, 3, H, K), tokens(B, H, S, K), tokens(B, H, S, K)),
            forms=operation_forms(lambda qkv, k, v: (attention.step(qkv, k, v, position), k, v), sdpa=peer),
            cost=Cost(flops=4 * B * H * (position + 1) * K, bytes=(3 + 2 * position + 2 + 1) * size),
        )

    compare(f"attention, step {position}, {B}", form, subject)


@in_forms(*OPERATION, "sdpa")
def bench_step_at(compare: Compare, form: str) -> None:
    """One game, the newest of 16 steps, its position on the device: for others, since acting is `bench_act`."""
    B, S = 1, 16

    def peer(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BHK, k_BHK, v_BHK = qkv_B3HK.unbind(1)
        row_B = torch.arange(B, device=DEVICE)
        k_BHSK[row_B, :, position_B], v_BHSK[row_B, :, position_B] = k_BHK, v_BHK
        seen_B11S = (torch.arange(S, device=DEVICE) <= position_B[:, None])[:, None, None]
        return fused(q_BHK[:, :, None], k_BHSK, v_BHSK, attn_mask=seen_B11S)[:, :, 0], k_BHSK, v_BHSK

    def subject() -> Subject:
        size = B * H * K * DTYPE.itemsize
        return Subject(
            inputs=lambda: (
                tokens(B, 3, H, K),
                tokens(B, H, S, K),
                tokens(B, H, S, K),
                torch.full((B,), S - 1, device=DEVICE),
            ),
            forms=operation_forms(lambda qkv, k, v, at: (attention.step_at(qkv, k, v, at), k, v), sdpa=peer),
            cost=Cost(flops=4 * B * H * S * K, bytes=(3 + 2 * (S - 1) + 2 + 1) * size),
        )

    compare(f"attention, step at a position of the device, {B}", form, subject)
