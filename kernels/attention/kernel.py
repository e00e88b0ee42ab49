"""Causal attention over short sequences: a tile holds all keys of a head, so no softmax is ever rescaled.

q, k and v are read where the fused projection left them, [B, T, 3, H, K], and gradients are written to the same layout.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_MIN_DOT = 16  # the smallest side of a tile that tensor cores take


@triton.jit
def _dot(a, b):
    """A product accumulated in float32; float32 operands as three tf32 products, which keeps their precision."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _is_kept(seed, bh, t_T, start, T, dropout, BLOCK_S: tl.constexpr):
    """Which attention weights [T, S], keys from `start`, survive dropout: a pure function of seed and place."""
    # Philox draws four words at once, for four neighbouring keys: a quarter of the registers that one a key would take.
    # int32 holds B H T T up to 2^33; beyond, places repeat and weights far apart share a draw.
    four_S = start // 4 + tl.arange(0, BLOCK_S // 4)
    # mutation attention-same-dropout
    place_TS = ((bh * T + t_T)[:, None] * ((T + 3) // 4) + four_S[None, :]).to(tl.int32)
    u0_TS, u1_TS, u2_TS, u3_TS = tl.rand4x(seed, place_TS)
    u_TS22 = tl.join(tl.join(u0_TS, u2_TS), tl.join(u1_TS, u3_TS))
    return tl.reshape(u_TS22, (t_T.shape[0], BLOCK_S)) >= dropout  # mutation attention-dropout-keeps


@triton.jit
def _weights(q_TK, k_SK, t_T, s_S, T, scale):
    """Scores [T, S] in float32, -inf where a key is in the future or beyond the sequence."""
    score_TS = _dot(q_TK, tl.trans(k_SK)) * scale  # mutation attention-scale-missing
    # mutation attention-future-seen
    return tl.where((s_S[None, :] <= t_T[:, None]) & (s_S < T)[None, :], score_TS, -float("inf"))


@triton.jit
def _attend_fwd(
    qkv_ptr,
    seed_ptr,
    out_ptr,
    lse_ptr,
    k_cache_ptr,
    v_cache_ptr,
    T,
    S_CACHE,
    scale,
    dropout,
    H: tl.constexpr,
    K: tl.constexpr,
    DROPOUT: tl.constexpr,
    CACHE: tl.constexpr,
    LSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    bh = tl.program_id(0)
    b, h = (bh // H).to(tl.int64), bh % H
    t, s = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_S)
    kk = tl.arange(0, BLOCK_K)
    head_ptr = qkv_ptr + b * T * 3 * H * K + h * K  # mutation attention-heads-q
    is_q_TK, is_k_SK = (t < T)[:, None] & (kk < K)[None, :], (s < T)[:, None] & (kk < K)[None, :]
    in_TK, in_SK = t[:, None] * (3 * H * K) + kk[None, :], s[:, None] * (3 * H * K) + kk[None, :]
    if CACHE and BLOCK_T < BLOCK_S:
        # Each block copies its own steps: to store all keys from registers would spill the longest and widest.
        cache_TK = bh.to(tl.int64) * S_CACHE * K + t[:, None] * K + kk[None, :]
        mine_TK = tl.load(head_ptr + H * K + in_TK, mask=is_q_TK, other=0.0)
        tl.store(k_cache_ptr + cache_TK, mine_TK.to(k_cache_ptr.dtype.element_ty), mask=is_q_TK)
        mine_TK = tl.load(head_ptr + 2 * H * K + in_TK, mask=is_q_TK, other=0.0)
        tl.store(v_cache_ptr + cache_TK, mine_TK.to(v_cache_ptr.dtype.element_ty), mask=is_q_TK)
    q_TK = tl.load(head_ptr + in_TK, mask=is_q_TK, other=0.0)
    k_SK = tl.load(head_ptr + H * K + in_SK, mask=is_k_SK, other=0.0)
    v_SK = tl.load(head_ptr + 2 * H * K + in_SK, mask=is_k_SK, other=0.0)
    if CACHE and BLOCK_T == BLOCK_S:
        cache_SK = bh.to(tl.int64) * S_CACHE * K + s[:, None] * K + kk[None, :]
        # mutation prefill-values-cached
        tl.store(k_cache_ptr + cache_SK, k_SK.to(k_cache_ptr.dtype.element_ty), mask=is_k_SK)
        tl.store(v_cache_ptr + cache_SK, v_SK.to(v_cache_ptr.dtype.element_ty), mask=is_k_SK)
    score_TS = _weights(q_TK, k_SK, t, s, T, scale)
    max_T = tl.max(score_TS, 1)
    p_TS = tl.exp(score_TS - max_T[:, None])
    sum_T = tl.sum(p_TS, 1)
    if LSE:
        tl.store(lse_ptr + bh.to(tl.int64) * T + t, max_T + tl.log(sum_T), mask=t < T)
    p_TS = p_TS / sum_T[:, None]
    if DROPOUT:
        kept_TS = _is_kept(tl.load(seed_ptr), bh, t, 0, T, dropout, BLOCK_S)
        p_TS = tl.where(kept_TS, p_TS / (1.0 - dropout), 0.0)  # mutation attention-dropout-without
    out_TK = _dot(p_TS.to(v_SK.dtype), v_SK)
    out_ptr += b * T * H * K + h * K
    tl.store(out_ptr + t[:, None] * (H * K) + kk[None, :], out_TK.to(out_ptr.dtype.element_ty), mask=is_q_TK)


@triton.jit
def _pair(q_TK, k_SK, v_SK, grad_TK, lse_T, delta_T, seed, bh, t, start, T, scale, dropout, DROPOUT: tl.constexpr):
    """Of a block of queries and one of keys: the weights that met v, and the gradient of the scaled scores."""
    BLOCK_S: tl.constexpr = k_SK.shape[0]
    p_TS = tl.exp(_weights(q_TK, k_SK, t, start + tl.arange(0, BLOCK_S), T, scale) - lse_T[:, None])
    dp_TS = _dot(grad_TK, tl.trans(v_SK))
    met_TS = p_TS
    if DROPOUT:
        kept_TS = _is_kept(seed, bh, t, start, T, dropout, BLOCK_S)
        met_TS = tl.where(kept_TS, p_TS / (1.0 - dropout), 0.0)  # mutation attention-backward-dropout
        dp_TS = tl.where(kept_TS, dp_TS / (1.0 - dropout), 0.0)
    # mutation attention-backward-delta
    return met_TS.to(q_TK.dtype), (p_TS * (dp_TS - delta_T[:, None]) * scale).to(q_TK.dtype)


@triton.jit
def _load_block(ptr, start, stride, T, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows [BLOCK_T, BLOCK_K] from `start` of a head, 0 beyond the sequence and the width."""
    t, kk = start + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    return tl.load(ptr + t[:, None] * stride + kk[None, :], mask=(t < T)[:, None] & (kk < K)[None, :], other=0.0)


@triton.jit
def _attend_bwd(
    qkv_ptr,
    seed_ptr,
    out_ptr,
    lse_ptr,
    grad_ptr,
    dqkv_ptr,
    T,
    scale,
    dropout,
    H: tl.constexpr,
    K: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program owns one block of steps: the gradients of its keys and values, then of its queries."""
    bh = tl.program_id(0)
    mine = tl.program_id(1) if BLOCKS > 1 else 0
    b, h = (bh // H).to(tl.int64), bh % H
    IN: tl.constexpr = 3 * H * K
    OUT: tl.constexpr = H * K
    head_ptr = qkv_ptr + b * T * IN + h * K
    out_ptr += b * T * OUT + h * K
    grad_ptr += b * T * OUT + h * K
    lse_ptr += bh.to(tl.int64) * T
    seed = tl.load(seed_ptr) if DROPOUT else 0
    my_start = mine * BLOCK_T
    row, kk = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    my_t = my_start + row
    k_TK = _load_block(head_ptr + H * K, my_start, IN, T, K, BLOCK_T, BLOCK_K)
    v_TK = _load_block(head_ptr + 2 * H * K, my_start, IN, T, K, BLOCK_T, BLOCK_K)
    dq_TK = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    dk_TK = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    dv_TK = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)

    for i in range(BLOCKS):
        # mutation attention-backward-later
        if i >= mine:  # later queries meet my keys
            t = i * BLOCK_T + row
            q_TK = _load_block(head_ptr, i * BLOCK_T, IN, T, K, BLOCK_T, BLOCK_K)
            grad_TK = _load_block(grad_ptr, i * BLOCK_T, OUT, T, K, BLOCK_T, BLOCK_K)
            out_TK = _load_block(out_ptr, i * BLOCK_T, OUT, T, K, BLOCK_T, BLOCK_K)
            delta_T = tl.sum(grad_TK.to(tl.float32) * out_TK.to(tl.float32), 1)
            # +inf gives queries beyond the sequence no weight.
            lse_T = tl.load(lse_ptr + t, mask=t < T, other=float("inf"))
            met_TS, ds_TS = _pair(
                q_TK, k_TK, v_TK, grad_TK, lse_T, delta_T, seed, bh, t, my_start, T, scale, dropout, DROPOUT
            )
            dv_TK += _dot(tl.trans(met_TS), grad_TK)
            dk_TK += _dot(tl.trans(ds_TS), q_TK)
            if BLOCKS == 1:
                dq_TK += _dot(ds_TS, k_TK)

    if BLOCKS > 1:
        q_TK = _load_block(head_ptr, my_start, IN, T, K, BLOCK_T, BLOCK_K)
        grad_TK = _load_block(grad_ptr, my_start, OUT, T, K, BLOCK_T, BLOCK_K)
        out_TK = _load_block(out_ptr, my_start, OUT, T, K, BLOCK_T, BLOCK_K)
        delta_T = tl.sum(grad_TK.to(tl.float32) * out_TK.to(tl.float32), 1)
        lse_T = tl.load(lse_ptr + my_t, mask=my_t < T, other=float("inf"))
        for j in range(BLOCKS):
            if j <= mine:  # my queries meet earlier keys
                k_SK = _load_block(head_ptr + H * K, j * BLOCK_T, IN, T, K, BLOCK_T, BLOCK_K)
                v_SK = _load_block(head_ptr + 2 * H * K, j * BLOCK_T, IN, T, K, BLOCK_T, BLOCK_K)
                _, ds_TS = _pair(
                    q_TK, k_SK, v_SK, grad_TK, lse_T, delta_T, seed, bh, my_t, j * BLOCK_T, T, scale, dropout, DROPOUT
                )
                dq_TK += _dot(ds_TS, k_SK)

    is_kept_TK = (my_t < T)[:, None] & (kk < K)[None, :]
    to_ptr = dqkv_ptr + b * T * IN + h * K + my_t[:, None] * IN + kk[None, :]
    tl.store(to_ptr, dq_TK.to(dqkv_ptr.dtype.element_ty), mask=is_kept_TK)
    tl.store(to_ptr + H * K, dk_TK.to(dqkv_ptr.dtype.element_ty), mask=is_kept_TK)
    tl.store(to_ptr + 2 * H * K, dv_TK.to(dqkv_ptr.dtype.element_ty), mask=is_kept_TK)


@triton.jit
def _mask_fwd(seed_ptr, out_ptr, T, dropout, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    bh = tl.program_id(0)
    t, s = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_S)
    kept_TS = _is_kept(tl.load(seed_ptr), bh, t, 0, T, dropout, BLOCK_S)
    out_ptr += bh.to(tl.int64) * T * T
    tl.store(out_ptr + t[:, None] * T + s[None, :], kept_TS, mask=(t < T)[:, None] & (s < T)[None, :])


@triton.jit(do_not_specialize=["position"])
def _step_fwd(
    qkv_ptr,
    k_cache_ptr,
    v_cache_ptr,
    out_ptr,
    position,
    S_CACHE,
    scale,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One query of one head against its cache."""
    bh = tl.program_id(0)
    b, h = (bh // H).to(tl.int64), bh % H
    s, kk = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_K)
    head_ptr = qkv_ptr + b * 3 * H * K + h * K
    q_K = tl.load(head_ptr + kk, mask=kk < K, other=0.0)
    k_K = tl.load(head_ptr + H * K + kk, mask=kk < K, other=0.0)
    v_K = tl.load(head_ptr + 2 * H * K + kk, mask=kk < K, other=0.0)
    cache = bh.to(tl.int64) * S_CACHE * K
    # mutation step-written-place
    tl.store(k_cache_ptr + cache + position * K + kk, k_K.to(k_cache_ptr.dtype.element_ty), mask=kk < K)
    tl.store(v_cache_ptr + cache + position * K + kk, v_K.to(v_cache_ptr.dtype.element_ty), mask=kk < K)
    # What was just stored is taken from registers: no fence, and no read of a place that others may not have written.
    is_old_SK = (s < position)[:, None] & (kk < K)[None, :]
    old_SK = cache + s[:, None] * K + kk[None, :]
    k_SK = tl.load(k_cache_ptr + old_SK, mask=is_old_SK, other=0.0).to(tl.float32)
    v_SK = tl.load(v_cache_ptr + old_SK, mask=is_old_SK, other=0.0).to(tl.float32)
    is_mine_S1 = (s == position)[:, None]  # mutation step-stale-row
    k_SK = tl.where(is_mine_S1, k_K.to(tl.float32)[None, :], k_SK)
    v_SK = tl.where(is_mine_S1, v_K.to(tl.float32)[None, :], v_SK)
    score_S = tl.sum(q_K.to(tl.float32)[None, :] * k_SK, 1) * scale
    score_S = tl.where(s <= position, score_S, -float("inf"))  # mutation step-oldest-key
    p_S = tl.exp(score_S - tl.max(score_S, 0))
    out_K = tl.sum(p_S[:, None] * v_SK, 0) / tl.sum(p_S, 0)
    tl.store(out_ptr + b * H * K + h * K + kk, out_K.to(out_ptr.dtype.element_ty), mask=kk < K)


def _block(size: int) -> int:
    block: int = max(_MIN_DOT, triton.next_power_of_2(size))
    return block


def _forward(
    qkv_BT3HK: Tensor, seed: Tensor, dropout: float, cache: tuple[Tensor, Tensor] | None, with_lse: bool
) -> tuple[Tensor, Tensor]:
    B, T, _, H, K = qkv_BT3HK.shape
    out_BTHK = torch.empty((B, T, H, K), dtype=qkv_BT3HK.dtype, device=qkv_BT3HK.device)
    lse_BHT = torch.empty((B, H, T) if with_lse else (0,), dtype=torch.float32, device=qkv_BT3HK.device)
    BLOCK_S, BLOCK_K = _block(T), _block(K)
    BLOCK_T, num_warps = _fwd_config(BLOCK_S, BLOCK_K, qkv_BT3HK.dtype)
    k_BHSK, v_BHSK = cache or (out_BTHK, out_BTHK)
    _attend_fwd[(B * H, triton.cdiv(T, BLOCK_T))](
        qkv_BT3HK.contiguous(),
        seed,
        out_BTHK,
        lse_BHT,
        k_BHSK,
        v_BHSK,
        T,
        k_BHSK.shape[2],
        K**-0.5,
        dropout,
        H,
        K,
        DROPOUT=dropout > 0,
        CACHE=cache is not None,
        LSE=with_lse,
        BLOCK_T=BLOCK_T,
        BLOCK_S=BLOCK_S,
        BLOCK_K=BLOCK_K,
        num_warps=num_warps,
    )
    return out_BTHK, lse_BHT


def _fwd_config(BLOCK_S: int, BLOCK_K: int, dtype: torch.dtype) -> tuple[int, int]:
    """Steps in a block of queries, and warps: large tiles that no architecture spills (tests/aot)."""
    if dtype == torch.float32:
        return min(32 if max(BLOCK_S, BLOCK_K) <= 64 else 16, BLOCK_S), 8 if max(BLOCK_S, BLOCK_K) > 32 else 4
    return min(64, BLOCK_S), 8 if max(BLOCK_S, BLOCK_K) > 64 else 4


def _bwd_config(BLOCK_S: int, BLOCK_K: int, dtype: torch.dtype) -> tuple[int, int]:
    """Steps in a block, and warps, chosen as in `_fwd_config`."""
    if dtype == torch.float32:
        return 16, 8 if max(BLOCK_S, BLOCK_K) > 32 else 4
    return min(64 if max(BLOCK_S, BLOCK_K) <= 64 else 32, BLOCK_S), 8 if max(BLOCK_S, BLOCK_K) > 32 else 4


def _step_warps(size: int) -> int:
    """Warps for a tile of keys and one of values of that size, both in registers: at most 64 of each a thread."""
    if size <= 2048:
        return 1
    return 4 if size <= 8192 else 8


def attend_fwd(qkv_BT3HK: Tensor, seed: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Attended values, [B, T, H, K], and the log of each softmax's denominator, float32 [B, H, T]."""
    return _forward(qkv_BT3HK, seed, dropout, None, with_lse=True)


def prefill_fwd(qkv_BT3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
    """Attended values; keys and values go to the first T places of the cache."""
    return _forward(qkv_BT3HK, qkv_BT3HK, 0.0, (k_BHSK, v_BHSK), with_lse=False)[0]


def attend_bwd(
    grad_BTHK: Tensor, qkv_BT3HK: Tensor, seed: Tensor, out_BTHK: Tensor, lse_BHT: Tensor, dropout: float
) -> Tensor:
    """The gradient of the fused projection's output, in its layout."""
    B, T, _, H, K = qkv_BT3HK.shape
    dqkv_BT3HK = torch.empty((B, T, 3, H, K), dtype=qkv_BT3HK.dtype, device=qkv_BT3HK.device)
    BLOCK_K = _block(K)
    BLOCK_T, num_warps = _bwd_config(_block(T), BLOCK_K, qkv_BT3HK.dtype)
    BLOCKS = triton.cdiv(T, BLOCK_T)
    _attend_bwd[(B * H, BLOCKS)](
        qkv_BT3HK.contiguous(),
        seed,
        out_BTHK.contiguous(),
        lse_BHT,
        grad_BTHK.contiguous(),
        dqkv_BT3HK,
        T,
        K**-0.5,
        dropout,
        H,
        K,
        DROPOUT=dropout > 0,
        BLOCKS=BLOCKS,
        BLOCK_T=BLOCK_T,
        BLOCK_K=BLOCK_K,
        num_warps=num_warps,
    )
    return dqkv_BT3HK


def mask_fwd(seed: Tensor, B: int, H: int, T: int, dropout: float) -> Tensor:
    """The weights that dropout keeps, bool [B, H, T, T]."""
    kept_BHTT = torch.empty((B, H, T, T), dtype=torch.bool, device=seed.device)
    BLOCK_S = _block(T)
    BLOCK_T = min(64, BLOCK_S)
    _mask_fwd[(B * H, triton.cdiv(T, BLOCK_T))](seed, kept_BHTT, T, dropout, BLOCK_T=BLOCK_T, BLOCK_S=BLOCK_S)
    return kept_BHTT


def step_fwd(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position: int) -> Tensor:
    """Attended values [B, H, K] of one new step each; its key and value go to place `position`, below S."""
    B, _, H, K = qkv_B3HK.shape
    out_BHK = torch.empty((B, H, K), dtype=qkv_B3HK.dtype, device=qkv_B3HK.device)
    # The position bounds the tile: the early steps of a rollout hold a third of the last's.
    BLOCK_S, BLOCK_K = triton.next_power_of_2(position + 1), triton.next_power_of_2(K)
    _step_fwd[(B * H,)](
        qkv_B3HK.contiguous(),
        k_BHSK,
        v_BHSK,
        out_BHK,
        position,
        k_BHSK.shape[2],
        K**-0.5,
        H,
        K,
        BLOCK_S=BLOCK_S,
        BLOCK_K=BLOCK_K,
        num_warps=_step_warps(BLOCK_S * BLOCK_K),
    )
    return out_BHK
