"""Where the model attends: training on whole sequences, acting, and imagination's prefill and steps on the cache."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels.attention import attend, dropout_mask, prefill, step
from storm_fast.kernels.cost import Cost
from storm_fast.kernels.spec import Budget, Draw, Spec, Use

H, K = 8, 64
BF16_BYTES = 2


def _tokens(draw: Draw, B: int, T: int, H: int, K: int) -> tuple[Tensor]:
    return (draw.leaf(draw.normal(B, T, 3, H, K)),)


def _caches(draw: Draw, B: int, S: int, H: int, K: int) -> tuple[Tensor, Tensor]:
    return draw.normal(B, H, S, K), draw.normal(B, H, S, K)


def _prefill_inputs(draw: Draw, B: int, T: int, S: int, H: int, K: int) -> tuple[Tensor, ...]:
    return (draw.normal(B, T, 3, H, K), *_caches(draw, B, S, H, K))


def _step_inputs(draw: Draw, B: int, position: int, S: int, H: int, K: int) -> tuple[Tensor | int, ...]:
    return (draw.normal(B, 3, H, K), *_caches(draw, B, S, H, K), position)


def _prefill(qkv_BT3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> tuple[Tensor, ...]:
    return prefill(qkv_BT3HK, k_BHSK, v_BHSK), k_BHSK, v_BHSK


def _step(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position: int) -> tuple[Tensor, ...]:
    return step(qkv_B3HK, k_BHSK, v_BHSK, position), k_BHSK, v_BHSK


def _floors(*_: Any) -> tuple[float, ...]:
    # A score is a sum of K products of both signs: of 64 unit values, 5 in absolute value after the division by
    # sqrt(K); what it weighs reaches 5 too.
    return 32.0, 32.0


# Peers read the same inputs.


def _sdpa(qkv_BT3HK: Tensor, dropout: float = 0.0) -> Tensor:
    q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4)
    fused = torch.nn.functional.scaled_dot_product_attention
    return fused(q_BHTK, k_BHTK, v_BHTK, dropout_p=dropout, is_causal=True).transpose(1, 2)


def _flex() -> Callable[[Tensor], Tensor]:
    compiled: list[Any] = []  # what the first call makes: FlexAttention is of use only compiled

    def call(qkv_BT3HK: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4)
        if not compiled:
            T = qkv_BT3HK.shape[1]
            mask = create_block_mask(lambda b, h, t, s: t >= s, None, None, T, T, device=qkv_BT3HK.device)
            compiled.append(partial(torch.compile(flex_attention, dynamic=False), block_mask=mask))
        out_BHTK: Tensor = compiled[0](q_BHTK, k_BHTK, v_BHTK)
        return out_BHTK.transpose(1, 2)

    return call


def _sdpa_prefill(qkv_BT3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> tuple[Tensor, ...]:
    T = qkv_BT3HK.shape[1]
    for cache_BHSK, x_BTHK in zip((k_BHSK, v_BHSK), qkv_BT3HK.unbind(2)[1:], strict=True):
        cache_BHSK[:, :, :T] = x_BTHK.transpose(1, 2)
    return _sdpa(qkv_BT3HK), k_BHSK, v_BHSK


def _sdpa_step(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position: int) -> tuple[Tensor, ...]:
    q_BHK, k_BHSK[:, :, position], v_BHSK[:, :, position] = qkv_B3HK.unbind(1)
    seen = slice(0, position + 1)
    fused = torch.nn.functional.scaled_dot_product_attention
    return fused(q_BHK[:, :, None], k_BHSK[:, :, seen], v_BHSK[:, :, seen])[:, :, 0], k_BHSK, v_BHSK


def _forward_cost(B: int, T: int) -> Cost:
    """Two products over the lower triangle; q, k and v read, as much as one of them written."""
    return Cost(flops=2 * B * H * T * (T + 1) * K, bytes=4 * B * T * H * K * BF16_BYTES)


def _both_cost(B: int, T: int) -> Cost:
    """Two products forward, five backward; qkv read twice, its gradient written, three of the size of the result."""
    return Cost(flops=7 * B * H * T * (T + 1) * K, bytes=12 * B * T * H * K * BF16_BYTES)


def _step_cost(B: int, position: int) -> Cost:
    """Keys and values of the past read, those of the step read and written, and its query and result."""
    return Cost(4 * B * H * (position + 1) * K, (3 + 2 * position + 2 + 1) * B * H * K * BF16_BYTES)


_BOTH = "attention, forward and backward, 16 x 64"

SPECS = (
    Spec(
        "attention.attend",
        attend,
        _tokens,
        small={
            "short": (1, 2, 1, 16),
            "odd": (2, 17, 3, 17),
            "longest-widest": (1, 128, 1, 128),
            "model": (1, 64, 8, 64),
        },
        full={
            "train": Use(f"{_BOTH}, dropout 0.0", (16, 64, H, K), _both_cost(16, 64), learns=True),
            "act-one": Use("attention, forward, 1 x 16", (1, 16, H, K), _forward_cost(1, 16)),
            "act": Use("attention, forward, 16 x 16", (16, 16, H, K), _forward_cost(16, 16)),
        },
        floors=_floors,
        # Gradients pass through probabilities and their gradient, each rounded to bf16 where a form keeps them so.
        tolerance=2e-2,
        peers={"sdpa": _sdpa, "flex": _flex()},
    ),
    Spec(
        "attention.dropout",
        partial(attend, dropout=0.1),
        _tokens,
        small={"odd": (2, 17, 3, 17)},
        full={"train": Use(f"{_BOTH}, dropout 0.1", (16, 64, H, K), _both_cost(16, 64), learns=True)},
        is_random=True,
        tolerance=2e-2,
        peers={"sdpa": partial(_sdpa, dropout=0.1)},
        compared="attention.attend",
        absent={"flex": "FlexAttention has no dropout"},
    ),
    Spec(
        "attention.dropout_mask",
        lambda seed, B, H, T: dropout_mask(seed, B, H, T, 0.1),
        lambda draw, B, H, T: (draw.integers(2**62), B, H, T),
        small={"odd": (2, 3, 17), "longest": (1, 1, 128)},
        full={},
        dtypes=(torch.float32,),
        is_random=True,  # what the kernels drop is their own: there is no reference
    ),
    Spec(
        "attention.prefill",
        _prefill,
        _prefill_inputs,
        small={"one": (1, 1, 1, 1, 16), "odd": (2, 7, 9, 3, 17)},
        full={
            "imagine": Use(
                "attention, prefill, 1024 x 8",
                (1024, 8, 24, H, K),
                Cost(flops=2 * 1024 * H * 8 * 9 * K, bytes=6 * 1024 * 8 * H * K * BF16_BYTES),
            )
        },
        floors=_floors,
        peers={"sdpa": _sdpa_prefill},
    ),
    Spec(
        "attention.step",
        _step,
        _step_inputs,
        small={"one": (1, 0, 1, 1, 16), "odd": (2, 4, 9, 3, 17), "last": (2, 8, 9, 3, 64)},
        full={
            "first": Use("attention, step 8, 1024", (1024, 8, 24, H, K), _step_cost(1024, 8)),
            "last": Use("attention, step 23, 1024", (1024, 23, 24, H, K), _step_cost(1024, 23)),
        },
        floors=_floors,
        peers={"sdpa": _sdpa_step},
    ),
)


def _least_dots(given: Mapping[str, Any], num_warps: int, architecture: int) -> int:
    """What the products take at least: none of them may have fallen back to plain arithmetic.

    A warp multiplies 16 x 8 tiles, 16 deep (tf32: 8 deep, three times for a float32 product); from Hopper on, a group
    of four warps may multiply 64 rows by all columns at once, 16 deep.
    """
    rows, width = given["BLOCK_T"], given["BLOCK_K"]
    keys = given.get("BLOCK_S", rows)
    # Of each product the sum's length: over the width for scores and their gradients, over steps for the others.
    if "BLOCKS" not in given:
        depths = [width, keys]
    else:
        depths = [width, width, rows, rows, rows] if given["BLOCKS"] == 1 else [width] * 4 + [rows] * 3
    is_float32 = given["qkv_ptr"].dtype == torch.float32
    tiles = rows * keys * width // (16 * 8 * (8 if is_float32 else 16) * num_warps)
    counts = [max(1, tiles) * (3 if is_float32 else 1)] * len(depths)
    if architecture >= 90 and not is_float32:
        groups = max(1, num_warps // 4)
        counts = [
            min(count, max(1, rows * depth // (64 * 16 * groups))) for count, depth in zip(counts, depths, strict=True)
        ]
    return sum(counts)


BUDGETS = {
    "_attend_fwd": Budget(
        255,
        99,
        _least_dots,
        tighter={
            ("attention.dropout-train", 90): Budget(96, 24, _least_dots),
            # Triton 3.6, the oldest that we support, gives the prefill 4 KiB of shared memory, 3.9 half of it.
            ("attention.prefill-imagine", 90): Budget(48, 4, _least_dots),
        },
    ),
    "_attend_bwd": Budget(
        255, 99, _least_dots, tighter={("attention.dropout-train", 90): Budget(144, 32, _least_dots)}
    ),
    "_mask_fwd": Budget(56),
    "_step_fwd": Budget(184, tighter={("attention.step-last", 90): Budget(136)}),
}
