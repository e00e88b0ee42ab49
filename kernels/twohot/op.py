"""Two-hot regression as torch ops, and the public functions, which run the kernels or the reference."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.twohot import reference


@backend.op("twohot_loss", "twohot.loss_fwd")
def _loss(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    shape = (logits_NV.shape[0],)
    return logits_NV.new_empty(shape, dtype=torch.float32), logits_NV.new_empty(shape, dtype=torch.float32)


@backend.op("twohot_loss_backward", "twohot.loss_bwd")
def _loss_backward(grad_N: Tensor, logits_NV: Tensor, target_N: Tensor, lse_N: Tensor) -> Tensor:
    return logits_NV.new_empty(logits_NV.shape)


@backend.op("twohot_encode", "twohot.encode_fwd")
def _encode(x_N: Tensor, V: int) -> Tensor:
    return x_N.new_empty((x_N.shape[0], V), dtype=torch.float32)


@backend.op("twohot_decode", "twohot.decode_fwd")
def _decode(logits_NV: Tensor) -> Tensor:
    return logits_NV.new_empty((logits_NV.shape[0],), dtype=torch.float32)


@backend.op("twohot_decode_backward", "twohot.decode_bwd")
def _decode_backward(grad_N: Tensor, logits_NV: Tensor) -> Tensor:
    return logits_NV.new_empty(logits_NV.shape)


def _loss_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)  # the output without a gradient would get zeros
    ctx.mark_non_differentiable(output[1])


def _loss_grad(ctx: Any, grad_N: Tensor | None, _: None) -> tuple[Tensor | None, None]:
    if grad_N is None:
        return None, None
    return _loss_backward(grad_N, *ctx.saved_tensors), None


def _decode_setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _decode_grad(ctx: Any, grad_N: Tensor) -> Tensor:
    return _decode_backward(grad_N, *ctx.saved_tensors)


torch.library.register_autograd("storm_fast::twohot_loss", _loss_grad, setup_context=_loss_setup)
torch.library.register_autograd("storm_fast::twohot_decode", _decode_grad, setup_context=_decode_setup)


def _check_bins(V: int) -> None:
    if V < 2:
        raise ValueError(f"want at least 2 bins; got {V}")


def loss(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Cross-entropy in nats to the two-hot target, float32 [...]; see `reference.loss`. No gradient to the target.

    Raises:
        ValueError: where the target is not [...] for logits [..., V], or V is below 2.
    """
    if target_N.shape != logits_NV.shape[:-1]:
        raise ValueError(f"want logits [..., V], target [...]; got {tuple(logits_NV.shape)}, {tuple(target_N.shape)}")
    V = logits_NV.shape[-1]
    _check_bins(V)
    if not backend.is_triton(logits_NV):
        return reference.loss(logits_NV, target_N.detach())
    return _loss(logits_NV.reshape(-1, V), target_N.detach().flatten())[0].view(target_N.shape)


def encode(x_N: Tensor, V: int) -> Tensor:
    """Two-hot rows over V bins, float32 [..., V]; see `reference.encode`. No gradient.

    Raises:
        ValueError: where V is below 2.
    """
    _check_bins(V)
    if not backend.is_triton(x_N):
        return reference.encode(x_N.detach(), V)
    return _encode(x_N.detach().flatten(), V).view(*x_N.shape, V)


def decode(logits_NV: Tensor) -> Tensor:
    """symexp of the expected bin, float32 [...]; see `reference.decode`.

    Raises:
        ValueError: where there are fewer than 2 bins.
    """
    V = logits_NV.shape[-1]
    _check_bins(V)
    if not backend.is_triton(logits_NV):
        return reference.decode(logits_NV)
    return _decode(logits_NV.reshape(-1, V)).view(logits_NV.shape[:-1])
