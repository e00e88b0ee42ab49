"""Categorical latents as torch ops, and the public functions, which run the kernels or the reference."""

from typing import Any, Literal

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.categorical import reference

# kernel.py is imported where it runs: a process that uses the references alone never loads Triton.


def _sample(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    from storm_fast.kernels.categorical import kernel

    return kernel.sample_fwd(logits_NC, u_N, unimix)


def _sample_fake(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    return logits_NC.new_empty(logits_NC.shape)


def _draw(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    from storm_fast.kernels.categorical import kernel

    return kernel.draw_fwd(logits_NC, u_N, unimix)


def _draw_fake(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    return logits_NC.new_empty((logits_NC.shape[0],), dtype=torch.int64)


def _sample_backward(grad_NC: Tensor, logits_NC: Tensor, unimix: float) -> Tensor:
    from storm_fast.kernels.categorical import kernel

    return kernel.sample_bwd(grad_NC, logits_NC, unimix)


def _sample_backward_fake(grad_NC: Tensor, logits_NC: Tensor, unimix: float) -> Tensor:
    return logits_NC.new_empty(logits_NC.shape)


def _kl(
    post_BTGC: Tensor, prior_BTGC: Tensor, unimix: float, free_nats: float, per_step: bool
) -> tuple[Tensor, Tensor]:
    from storm_fast.kernels.categorical import kernel

    return kernel.kl_fwd(post_BTGC, prior_BTGC, unimix, free_nats, per_step)


def _kl_fake(
    post_BTGC: Tensor, prior_BTGC: Tensor, unimix: float, free_nats: float, per_step: bool
) -> tuple[Tensor, Tensor]:
    B, T = post_BTGC.shape[:2]
    return post_BTGC.new_empty((3,), dtype=torch.float32), post_BTGC.new_empty((B * T,), dtype=torch.float32)


def _kl_backward(
    grad_3: Tensor,
    post_BTGC: Tensor,
    prior_BTGC: Tensor,
    out_3: Tensor,
    kl_N: Tensor,
    unimix: float,
    free_nats: float,
    per_step: bool,
) -> tuple[Tensor, Tensor]:
    from storm_fast.kernels.categorical import kernel

    return kernel.kl_bwd(grad_3, post_BTGC, prior_BTGC, out_3, kl_N, unimix, free_nats, per_step)


def _kl_backward_fake(
    grad_3: Tensor, post_BTGC: Tensor, prior_BTGC: Tensor, *_: Tensor | float | bool
) -> tuple[Tensor, Tensor]:
    return post_BTGC.new_empty(post_BTGC.shape), prior_BTGC.new_empty(prior_BTGC.shape)


_OPS: backend.Ops = {
    "categorical_sample(Tensor logits, Tensor u, float unimix) -> Tensor": (_sample, _sample_fake),
    "categorical_draw(Tensor logits, Tensor u, float unimix) -> Tensor": (_draw, _draw_fake),
    "categorical_sample_backward(Tensor grad, Tensor logits, float unimix) -> Tensor": (
        _sample_backward,
        _sample_backward_fake,
    ),
    "categorical_kl(Tensor post, Tensor prior, float unimix, float free_nats, bool per_step) -> (Tensor, Tensor)": (
        _kl,
        _kl_fake,
    ),
    "categorical_kl_backward(Tensor grad, Tensor post, Tensor prior, Tensor out, Tensor kl, float unimix, "
    "float free_nats, bool per_step) -> (Tensor, Tensor)": (_kl_backward, _kl_backward_fake),
}
backend.register(_OPS)


def _sample_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits_NC, _, ctx.unimix = inputs
    ctx.save_for_backward(logits_NC)


def _sample_grad(ctx: Any, grad_NC: Tensor) -> tuple[Tensor, None, None]:
    (logits_NC,) = ctx.saved_tensors
    return torch.ops.storm_fast.categorical_sample_backward(grad_NC, logits_NC, ctx.unimix), None, None


torch.library.register_autograd("storm_fast::categorical_sample", _sample_grad, setup_context=_sample_setup)


def _kl_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    post_BTGC, prior_BTGC, *ctx.numbers = inputs
    ctx.save_for_backward(post_BTGC, prior_BTGC, *output)
    ctx.set_materialize_grads(False)  # the output without a gradient would get zeros
    ctx.mark_non_differentiable(output[1])


def _kl_grad(ctx: Any, grad_3: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    if grad_3 is None:
        return None, None, None, None, None
    post_BTGC, prior_BTGC = torch.ops.storm_fast.categorical_kl_backward(grad_3, *ctx.saved_tensors, *ctx.numbers)
    return post_BTGC, prior_BTGC, None, None, None


torch.library.register_autograd("storm_fast::categorical_kl", _kl_grad, setup_context=_kl_setup)


def _check_draw(logits_NC: Tensor, u_N: Tensor) -> None:
    if u_N.shape != logits_NC.shape[:-1]:
        raise ValueError(f"want logits [..., C] and u [...]; got {tuple(logits_NC.shape)}, {tuple(u_N.shape)}")


def draw(logits_NC: Tensor, u_N: Tensor, unimix: float = 0.0) -> Tensor:
    """Classes drawn by inverse CDF, int64 [...]; see `reference.draw`.

    Raises:
        ValueError: where u is not [...] for logits [..., C].
    """
    _check_draw(logits_NC, u_N)
    if not backend.is_triton(logits_NC):
        return reference.draw(logits_NC, u_N, unimix)
    index_N: Tensor = torch.ops.storm_fast.categorical_draw(
        logits_NC.detach().reshape(-1, logits_NC.shape[-1]), u_N.flatten(), unimix
    )
    return index_N.view(u_N.shape)


def sample(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    """One-hot draws [..., C] with the gradient of the probabilities (STORM sec. 3.1); see `reference.sample`.

    Raises:
        ValueError: where u is not [...] for logits [..., C].
    """
    _check_draw(logits_NC, u_N)
    if not backend.is_triton(logits_NC):
        return reference.sample(logits_NC, u_N, unimix)
    onehot_NC: Tensor = torch.ops.storm_fast.categorical_sample(
        logits_NC.reshape(-1, logits_NC.shape[-1]), u_N.flatten(), unimix
    )
    return onehot_NC.view(logits_NC.shape)


def kl_losses(
    post_logits_NGC: Tensor,
    prior_logits_NGC: Tensor,
    unimix: float,
    free_nats: float,
    per: Literal["batch", "step"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Dynamics loss, representation loss (STORM eq. 5) and KL, 0-d float32; see `reference.kl_losses`.

    Raises:
        ValueError: where the two are not of one shape [..., G, C].
    """
    if post_logits_NGC.shape != prior_logits_NGC.shape or post_logits_NGC.ndim < 3:
        got = f"{tuple(post_logits_NGC.shape)}, {tuple(prior_logits_NGC.shape)}"
        raise ValueError(f"want posterior and prior logits of one shape [..., G, C]; got {got}")
    if not backend.is_triton(post_logits_NGC):
        return reference.kl_losses(post_logits_NGC, prior_logits_NGC, unimix, free_nats, per)
    post_BTGC, prior_BTGC = _as_btgc(post_logits_NGC), _as_btgc(prior_logits_NGC)
    out_3 = torch.ops.storm_fast.categorical_kl(post_BTGC, prior_BTGC, unimix, free_nats, per == "step")[0]
    dynamics, representation, kl = out_3.unbind()
    return dynamics, representation, kl.detach()


def _as_btgc(logits_NGC: Tensor) -> Tensor:
    return logits_NGC[None] if logits_NGC.ndim == 3 else logits_NGC.flatten(0, -4)
