"""Attention as torch ops, and the public functions, which run the kernels or the reference."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.attention import reference

LONGEST = 128
"""Keys that one tile of the kernels holds; also the widest head."""


@backend.op("attend", "attention.attend_fwd")
def _attend(qkv_BT3HK: Tensor, seed: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    B, T, _, H, K = qkv_BT3HK.shape
    return qkv_BT3HK.new_empty((B, T, H, K)), qkv_BT3HK.new_empty((B, H, T), dtype=torch.float32)


@backend.op("attend_backward", "attention.attend_bwd")
def _attend_backward(
    grad_BTHK: Tensor, qkv_BT3HK: Tensor, seed: Tensor, out_BTHK: Tensor, lse_BHT: Tensor, dropout: float
) -> Tensor:
    return qkv_BT3HK.new_empty(qkv_BT3HK.shape)


@backend.op("dropout_mask", "attention.mask_fwd")
def _mask(seed: Tensor, B: int, H: int, T: int, dropout: float) -> Tensor:
    return seed.new_empty((B, H, T, T), dtype=torch.bool)


@backend.op("attention_prefill", "attention.prefill_fwd", mutates=("k_BHSK", "v_BHSK"))
def _prefill(qkv_BT3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
    B, T, _, H, K = qkv_BT3HK.shape
    return qkv_BT3HK.new_empty((B, T, H, K))


@backend.op("attention_step", "attention.step_fwd", mutates=("k_BHSK", "v_BHSK"))
def _step(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position: int) -> Tensor:
    B, _, H, K = qkv_B3HK.shape
    return qkv_B3HK.new_empty((B, H, K))


def _attend_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv_BT3HK, seed, ctx.dropout = inputs
    ctx.save_for_backward(qkv_BT3HK, seed, *output)
    ctx.set_materialize_grads(False)  # the output without a gradient would get zeros
    ctx.mark_non_differentiable(output[1])


def _attend_grad(ctx: Any, grad_BTHK: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
    if grad_BTHK is None:
        return None, None, None
    qkv_BT3HK, seed, out_BTHK, lse_BHT = ctx.saved_tensors
    return _attend_backward(grad_BTHK, qkv_BT3HK, seed, out_BTHK, lse_BHT, ctx.dropout), None, None


torch.library.register_autograd("storm_fast::attend", _attend_grad, setup_context=_attend_setup)


def _check_size(T: int, K: int) -> None:
    if max(T, K) > LONGEST:
        got = f"T {T}, head width {K}"
        raise ValueError(f"want T and head width of at most {LONGEST} (--kernels reference has no bound); got {got}")


def _check_cache(qkv_N3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> None:
    B, H, K = qkv_N3HK.shape[0], *qkv_N3HK.shape[-2:]
    S = k_BHSK.shape[2]
    is_fit = k_BHSK.shape == v_BHSK.shape == (B, H, S, K) and k_BHSK.is_contiguous() and v_BHSK.is_contiguous()
    # Cached keys of another dtype would be rounded once more than those of a full pass.
    is_alike = all((x.dtype, x.device) == (qkv_N3HK.dtype, qkv_N3HK.device) for x in (k_BHSK, v_BHSK))
    if not is_fit or not is_alike:
        got = "; ".join(f"{tuple(x.shape)} {x.dtype} {x.device}" for x in (qkv_N3HK, k_BHSK, v_BHSK))
        raise ValueError(
            f"want qkv [B, ..., 3, H, K] and contiguous caches [B, H, S, K] of its dtype and device; got {got}"
        )


def attend(qkv_BT3HK: Tensor, dropout: float = 0.0) -> Tensor:
    """Causal attention [B, T, H, K] (STORM Table 7); see `reference.attend`.

    Dropout draws from PyTorch's generator of the device: the reference each weight, the kernel one seed.

    Raises:
        ValueError: on Triton, where T or K exceeds `LONGEST`.
    """
    if not backend.is_triton(qkv_BT3HK):
        return reference.attend(qkv_BT3HK, dropout)
    _check_size(qkv_BT3HK.shape[1], qkv_BT3HK.shape[-1])
    device = qkv_BT3HK.device
    if dropout > 0:
        seed = torch.randint(2**62, (), dtype=torch.int64, device=device)
    else:
        seed = torch.empty((), dtype=torch.int64, device=device)
    return _attend(qkv_BT3HK, seed, dropout)[0]


def dropout_mask(seed: Tensor, B: int, H: int, T: int, dropout: float) -> Tensor:
    """The attention weights that the kernels keep under a seed, bool [B, H, T, T]; always computed by the kernel."""
    return _mask(seed, B, H, T, dropout)


def prefill(qkv_BT3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
    """`attend` without dropout, which also fills the cache's first T places; see `reference.prefill`. No gradient.

    Raises:
        ValueError: on Triton, where T or K exceeds `LONGEST` or T the cache, or where the cache is not contiguous
            [B, H, S, K] of the dtype and device of ``qkv``.
    """
    if not backend.is_triton(qkv_BT3HK):
        return reference.prefill(qkv_BT3HK, k_BHSK, v_BHSK)
    _check_size(qkv_BT3HK.shape[1], qkv_BT3HK.shape[-1])
    _check_cache(qkv_BT3HK, k_BHSK, v_BHSK)
    if qkv_BT3HK.shape[1] > k_BHSK.shape[2]:
        raise ValueError(f"want a cache of at least T {qkv_BT3HK.shape[1]} places; got {k_BHSK.shape[2]}")
    return _prefill(qkv_BT3HK.detach(), k_BHSK, v_BHSK)


def step(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position: int) -> Tensor:
    """One step on the cache, [B, H, K], written to place `position`; see `reference.step`. No gradient.

    Raises:
        ValueError: when the cache is full and, on Triton, as `prefill`.
    """
    if not backend.is_triton(qkv_B3HK):
        return reference.step(qkv_B3HK, k_BHSK, v_BHSK, position)
    S = k_BHSK.shape[2]
    if not 0 <= position < S:
        raise ValueError(f"want a position in [0, {S}), the cache's length; got {position}")
    _check_size(S, qkv_B3HK.shape[-1])
    _check_cache(qkv_B3HK, k_BHSK, v_BHSK)
    return _step(qkv_B3HK.detach(), k_BHSK, v_BHSK, position)
