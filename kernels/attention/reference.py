"""Causal multi-head attention in plain PyTorch: the whole sequence, a prefill that fills a cache, one cached step.

All three read q, k and v from the fused projection's output, [..., 3, H, K], and return [..., H, K]. The cache
holds projected keys and values, [B, H, S, K] each, preallocated; S is the longest sequence it can take.
"""

import torch
from torch import Tensor


def _weighted(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    seen_TS: Tensor | None,
    dropout: float,
    kept_BHTS: Tensor | None = None,
) -> Tensor:
    """softmax(q k / sqrt(K)) v over the keys that are seen; the softmax in float32, dropout on its result."""
    score_BHTS = (q_BHTK @ k_BHSK.transpose(-1, -2)).float() * q_BHTK.shape[-1] ** -0.5
    if seen_TS is not None:
        score_BHTS = score_BHTS.masked_fill(~seen_TS, -torch.inf)
    p_BHTS = score_BHTS.softmax(-1)
    if kept_BHTS is not None:
        p_BHTS = p_BHTS * kept_BHTS / (1 - dropout)
    elif dropout > 0:
        p_BHTS = torch.nn.functional.dropout(p_BHTS, dropout)
    out_BHTK: Tensor = p_BHTS.to(v_BHSK.dtype) @ v_BHSK
    return out_BHTK


def attend(qkv_BT3HK: Tensor, dropout: float = 0.0, kept_BHTT: Tensor | None = None) -> Tensor:
    """Each step attends to itself and to those before it (STORM Table 7, MHSA).

    Args:
        qkv_BT3HK: fused projection.
        dropout: probability of dropping an attention weight.
        kept_BHTT: the weights that dropout keeps, bool; None draws them from PyTorch's generator.

    Returns:
        out_BTHK, dtype of ``qkv``.
    """
    T = qkv_BT3HK.shape[1]
    q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4)
    seen_TT = torch.ones(T, T, dtype=torch.bool, device=qkv_BT3HK.device).tril()
    return _weighted(q_BHTK, k_BHTK, v_BHTK, seen_TT, dropout, kept_BHTT).transpose(1, 2)


def prefill(qkv_BT3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
    """As `attend` without dropout; also writes the T keys and values to the cache's first T places, in place."""
    T = qkv_BT3HK.shape[1]
    _, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4)
    k_BHSK[:, :, :T] = k_BHTK
    v_BHSK[:, :, :T] = v_BHTK
    return attend(qkv_BT3HK)


def step(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position: int) -> Tensor:
    """One new step attends to the cache's first `position` places and to itself, which it writes to the next.

    Args:
        qkv_B3HK: fused projection of the new step.
        k_BHSK: cached keys, written in place.
        v_BHSK: cached values, written in place.
        position: steps in the cache before this one.

    Returns:
        out_BHK, dtype of ``qkv``.

    Raises:
        ValueError: when the cache is full.
    """
    S = k_BHSK.shape[2]
    if not 0 <= position < S:
        raise ValueError(f"want a position in [0, {S}), the cache's length; got {position}")
    q_BHK, k_BHK, v_BHK = qkv_B3HK.unbind(1)
    k_BHSK[:, :, position] = k_BHK
    v_BHSK[:, :, position] = v_BHK
    seen = slice(0, position + 1)
    out_BH1K = _weighted(q_BHK[:, :, None], k_BHSK[:, :, seen], v_BHSK[:, :, seen], None, 0.0)
    return out_BH1K[:, :, 0]
