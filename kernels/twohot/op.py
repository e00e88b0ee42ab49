"""Two-hot regression as torch ops, and the public functions, which run the kernels or the reference."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.twohot import reference

# kernel.py is imported where it runs: a process that uses the references alone never loads Triton.


def _loss(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    from storm_fast.kernels.twohot import kernel

    return kernel.loss_fwd(logits_NV, target_N)


def _loss_fake(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    shape = (logits_NV.shape[0],)
    return logits_NV.new_empty(shape, dtype=torch.float32), logits_NV.new_empty(shape, dtype=torch.float32)


def _loss_backward(grad_N: Tensor, logits_NV: Tensor, target_N: Tensor, lse_N: Tensor) -> Tensor:
    from storm_fast.kernels.twohot import kernel

    return kernel.loss_bwd(grad_N, logits_NV, target_N, lse_N)


def _loss_backward_fake(grad_N: Tensor, logits_NV: Tensor, target_N: Tensor, lse_N: Tensor) -> Tensor:
    return logits_NV.new_empty(logits_NV.shape)


def _encode(x_N: Tensor, V: int) -> Tensor:
    from storm_fast.kernels.twohot import kernel

    return kernel.encode_fwd(x_N, V)


def _encode_fake(x_N: Tensor, V: int) -> Tensor:
    return x_N.new_empty((x_N.shape[0], V), dtype=torch.float32)


def _decode(logits_NV: Tensor) -> Tensor:
    from storm_fast.kernels.twohot import kernel

    return kernel.decode_fwd(logits_NV)


def _decode_fake(logits_NV: Tensor) -> Tensor:
    return logits_NV.new_empty((logits_NV.shape[0],), dtype=torch.float32)


def _decode_backward(grad_N: Tensor, logits_NV: Tensor) -> Tensor:
    from storm_fast.kernels.twohot import kernel

    return kernel.decode_bwd(grad_N, logits_NV)


def _decode_backward_fake(grad_N: Tensor, logits_NV: Tensor) -> Tensor:
    return logits_NV.new_empty(logits_NV.shape)


_OPS: backend.Ops = {
    "twohot_loss(Tensor logits, Tensor target) -> (Tensor, Tensor)": (_loss, _loss_fake),
    "twohot_loss_backward(Tensor grad, Tensor logits, Tensor target, Tensor lse) -> Tensor": (
        _loss_backward,
        _loss_backward_fake,
    ),
    "twohot_encode(Tensor x, SymInt bins) -> Tensor": (_encode, _encode_fake),
    "twohot_decode(Tensor logits) -> Tensor": (_decode, _decode_fake),
    "twohot_decode_backward(Tensor grad, Tensor logits) -> Tensor": (_decode_backward, _decode_backward_fake),
}
backend.register(_OPS)


def _loss_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)  # the output without a gradient would get zeros
    ctx.mark_non_differentiable(output[1])


def _loss_grad(ctx: Any, grad_N: Tensor | None, _: None) -> tuple[Tensor | None, None]:
    if grad_N is None:
        return None, None
    return torch.ops.storm_fast.twohot_loss_backward(grad_N, *ctx.saved_tensors), None


def _decode_setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _decode_grad(ctx: Any, grad_N: Tensor) -> Tensor:
    grad_NV: Tensor = torch.ops.storm_fast.twohot_decode_backward(grad_N, *ctx.saved_tensors)
    return grad_NV


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
    loss_N: Tensor = torch.ops.storm_fast.twohot_loss(logits_NV.reshape(-1, V), target_N.detach().flatten())[0]
    return loss_N.view(target_N.shape)


def encode(x_N: Tensor, V: int) -> Tensor:
    """Two-hot rows over V bins, float32 [..., V]; see `reference.encode`. No gradient.

    Raises:
        ValueError: where V is below 2.
    """
    _check_bins(V)
    if not backend.is_triton(x_N):
        return reference.encode(x_N.detach(), V)
    p_NV: Tensor = torch.ops.storm_fast.twohot_encode(x_N.detach().flatten(), V)
    return p_NV.view(*x_N.shape, V)


def decode(logits_NV: Tensor) -> Tensor:
    """symexp of the expected bin, float32 [...]; see `reference.decode`.

    Raises:
        ValueError: where there are fewer than 2 bins.
    """
    V = logits_NV.shape[-1]
    _check_bins(V)
    if not backend.is_triton(logits_NV):
        return reference.decode(logits_NV)
    x_N: Tensor = torch.ops.storm_fast.twohot_decode(logits_NV.reshape(-1, V))
    return x_N.view(logits_NV.shape[:-1])
