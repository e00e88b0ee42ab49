"""Attention as torch ops, and the public functions, which run the kernels or the reference."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.attention import reference

# kernel.py is imported where it runs: a process that uses the references alone never loads Triton.

LONGEST = 128
"""Keys that one tile of the kernels holds; also the widest head."""


def _attend(qkv_BT3HK: Tensor, seed: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    from storm_fast.kernels.attention import kernel

    return kernel.attend_fwd(qkv_BT3HK, seed, dropout)


def _attend_fake(qkv_BT3HK: Tensor, seed: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    B, T, _, H, K = qkv_BT3HK.shape
    return qkv_BT3HK.new_empty((B, T, H, K)), qkv_BT3HK.new_empty((B, H, T), dtype=torch.float32)


def _attend_backward(
    grad_BTHK: Tensor, qkv_BT3HK: Tensor, seed: Tensor, out_BTHK: Tensor, lse_BHT: Tensor, dropout: float
) -> Tensor:
    from storm_fast.kernels.attention import kernel

    return kernel.attend_bwd(grad_BTHK, qkv_BT3HK, seed, out_BTHK, lse_BHT, dropout)


def _attend_backward_fake(grad_BTHK: Tensor, qkv_BT3HK: Tensor, *_: Tensor | float) -> Tensor:
    return qkv_BT3HK.new_empty(qkv_BT3HK.shape)


def _mask(seed: Tensor, B: int, H: int, T: int, dropout: float) -> Tensor:
    from storm_fast.kernels.attention import kernel

    return kernel.mask_fwd(seed, B, H, T, dropout)


def _mask_fake(seed: Tensor, B: int, H: int, T: int, dropout: float) -> Tensor:
    return seed.new_empty((B, H, T, T), dtype=torch.bool)


def _prefill(qkv_BT3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
    from storm_fast.kernels.attention import kernel

    return kernel.prefill_fwd(qkv_BT3HK, k_BHSK, v_BHSK)


def _prefill_fake(qkv_BT3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
    B, T, _, H, K = qkv_BT3HK.shape
    return qkv_BT3HK.new_empty((B, T, H, K))


def _step(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position: int | Tensor) -> Tensor:
    from storm_fast.kernels.attention import kernel

    return kernel.step_fwd(qkv_B3HK, k_BHSK, v_BHSK, position)


def _step_fake(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position: int | Tensor) -> Tensor:
    B, _, H, K = qkv_B3HK.shape
    return qkv_B3HK.new_empty((B, H, K))


_OPS: backend.Ops = {
    "attend(Tensor qkv, Tensor seed, float dropout) -> (Tensor, Tensor)": (_attend, _attend_fake),
    "attend_backward(Tensor grad, Tensor qkv, Tensor seed, Tensor out, Tensor lse, float dropout) -> Tensor": (
        _attend_backward,
        _attend_backward_fake,
    ),
    "dropout_mask(Tensor seed, SymInt B, SymInt H, SymInt T, float dropout) -> Tensor": (_mask, _mask_fake),
    "attention_prefill(Tensor qkv, Tensor(a!) k, Tensor(b!) v) -> Tensor": (_prefill, _prefill_fake),
    "attention_step(Tensor qkv, Tensor(a!) k, Tensor(b!) v, SymInt position) -> Tensor": (_step, _step_fake),
    "attention_step_at(Tensor qkv, Tensor(a!) k, Tensor(b!) v, Tensor position) -> Tensor": (_step, _step_fake),
}
backend.register(_OPS)


def _attend_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv_BT3HK, seed, ctx.dropout = inputs
    ctx.save_for_backward(qkv_BT3HK, seed, *output)
    ctx.set_materialize_grads(False)  # the output without a gradient would get zeros
    ctx.mark_non_differentiable(output[1])


def _attend_grad(ctx: Any, grad_BTHK: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
    if grad_BTHK is None:
        return None, None, None
    return torch.ops.storm_fast.attend_backward(grad_BTHK, *ctx.saved_tensors, ctx.dropout), None, None


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
    out_BTHK: Tensor = torch.ops.storm_fast.attend(qkv_BT3HK, seed, dropout)[0]
    return out_BTHK


def dropout_mask(seed: Tensor, B: int, H: int, T: int, dropout: float) -> Tensor:
    """The attention weights that the kernels keep under a seed, bool [B, H, T, T]; always computed by the kernel."""
    kept_BHTT: Tensor = torch.ops.storm_fast.dropout_mask(seed, B, H, T, dropout)
    return kept_BHTT


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
    out_BTHK: Tensor = torch.ops.storm_fast.attention_prefill(qkv_BT3HK.detach(), k_BHSK, v_BHSK)
    return out_BTHK


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
    out_BHK: Tensor = torch.ops.storm_fast.attention_step(qkv_B3HK.detach(), k_BHSK, v_BHSK, position)
    return out_BHK


def step_at(qkv_B3HK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position_B: Tensor) -> Tensor:
    """As `step` with positions, int [B], that the host never reads; one outside [0, S) is the caller's error.

    Raises:
        ValueError: where the positions are not [B] and, on Triton, as `prefill`.
    """
    if position_B.shape != qkv_B3HK.shape[:1]:
        raise ValueError(f"want positions [B] for qkv [B, 3, H, K]; got {tuple(position_B.shape)}")
    if not backend.is_triton(qkv_B3HK):
        return reference.step_at(qkv_B3HK, k_BHSK, v_BHSK, position_B)
    _check_size(k_BHSK.shape[2], qkv_B3HK.shape[-1])
    _check_cache(qkv_B3HK, k_BHSK, v_BHSK)
    out_BHK: Tensor = torch.ops.storm_fast.attention_step_at(qkv_B3HK.detach(), k_BHSK, v_BHSK, position_B.contiguous())
    return out_BHK
