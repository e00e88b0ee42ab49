"""Two-hot regression as torch ops, and the public functions, which run the kernels or the reference."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.twohot import reference


@backend.op("twohot_loss", "twohot.loss_fwd")
def _loss(logits_NW: Tensor, target_N: Tensor, V: int) -> tuple[Tensor, Tensor]:
    shape = (logits_NW.shape[0],)
    return logits_NW.new_empty(shape, dtype=torch.float32), logits_NW.new_empty(shape, dtype=torch.float32)


@backend.op("twohot_loss_backward", "twohot.loss_bwd")
def _loss_backward(grad_N: Tensor, logits_NW: Tensor, target_N: Tensor, lse_N: Tensor, V: int) -> Tensor:
    return logits_NW.new_empty(logits_NW.shape)


@backend.op("twohot_encode", "twohot.encode_fwd")
def _encode(x_N: Tensor, V: int) -> Tensor:
    return x_N.new_empty((x_N.shape[0], V), dtype=torch.float32)


@backend.op("twohot_decode", "twohot.decode_fwd")
def _decode(logits_NW: Tensor, V: int) -> Tensor:
    return logits_NW.new_empty((logits_NW.shape[0],), dtype=torch.float32)


@backend.op("twohot_decode_backward", "twohot.decode_bwd")
def _decode_backward(grad_N: Tensor, logits_NW: Tensor, V: int) -> Tensor:
    return logits_NW.new_empty(logits_NW.shape)


def _loss_setup(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    logits_NW, target_N, ctx.V = inputs
    ctx.save_for_backward(logits_NW, target_N, output[1])
    ctx.set_materialize_grads(False)  # the output without a gradient would get zeros
    ctx.mark_non_differentiable(output[1])


def _loss_grad(ctx: Any, grad_N: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
    if grad_N is None:
        return None, None, None
    logits_NW, target_N, lse_N = ctx.saved_tensors
    return _loss_backward(grad_N, logits_NW, target_N, lse_N, ctx.V), None, None


def _decode_setup(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    logits_NW, ctx.V = inputs
    ctx.save_for_backward(logits_NW)


def _decode_grad(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
    (logits_NW,) = ctx.saved_tensors
    return _decode_backward(grad_N, logits_NW, ctx.V), None


torch.library.register_autograd("storm_fast::twohot_loss", _loss_grad, setup_context=_loss_setup)
torch.library.register_autograd("storm_fast::twohot_decode", _decode_grad, setup_context=_decode_setup)


def _check_bins(V: int) -> None:
    if V < 2:
        raise ValueError(f"want at least 2 bins; got {V}")


def _bins(V: int | None, W: int) -> int:
    """V, by default all of a row of W logits; checked."""
    V = W if V is None else V
    _check_bins(V)
    if V > W:
        raise ValueError(f"want at most as many bins as logits; got {V} and {W}")
    return V


def loss(logits_NW: Tensor, target_N: Tensor, V: int | None = None) -> Tensor:
    """Cross-entropy in nats to the two-hot target, float32 [...]; see `reference.loss`. No gradient to the target.

    Raises:
        ValueError: where the target is not [...] for logits [..., W], V is below 2, or above W.
    """
    if target_N.shape != logits_NW.shape[:-1]:
        raise ValueError(f"want logits [..., W], target [...]; got {tuple(logits_NW.shape)}, {tuple(target_N.shape)}")
    W = logits_NW.shape[-1]
    V = _bins(V, W)
    if not backend.is_triton(logits_NW):
        return reference.loss(logits_NW, target_N.detach(), V)
    return _loss(logits_NW.reshape(-1, W), target_N.detach().flatten(), V)[0].view(target_N.shape)


def encode(x_N: Tensor, V: int) -> Tensor:
    """Two-hot rows over V bins, float32 [..., V]; see `reference.encode`. No gradient.

    Raises:
        ValueError: where V is below 2.
    """
    _check_bins(V)
    if not backend.is_triton(x_N):
        return reference.encode(x_N.detach(), V)
    return _encode(x_N.detach().flatten(), V).view(*x_N.shape, V)


def decode(logits_NW: Tensor, V: int | None = None) -> Tensor:
    """symexp of the expected bin, float32 [...]; see `reference.decode`.

    Raises:
        ValueError: where there are fewer than 2 bins, or fewer logits.
    """
    W = logits_NW.shape[-1]
    V = _bins(V, W)
    if not backend.is_triton(logits_NW):
        return reference.decode(logits_NW, V)
    return _decode(logits_NW.reshape(-1, W), V).view(logits_NW.shape[:-1])
