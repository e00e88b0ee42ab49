"""Categorical latents as torch ops, and the public functions, which run the kernels or the reference."""

from typing import Any, Literal

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.categorical import reference


@backend.op("categorical_sample", "categorical.sample_fwd")
def _sample(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    return logits_NC.new_empty(logits_NC.shape)


@backend.op("categorical_draw", "categorical.draw_fwd")
def _draw(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    return logits_NC.new_empty((logits_NC.shape[0],), dtype=torch.int64)


@backend.op("categorical_sample_backward", "categorical.sample_bwd")
def _sample_backward(grad_NC: Tensor, logits_NC: Tensor, unimix: float) -> Tensor:
    return logits_NC.new_empty(logits_NC.shape)


@backend.op("categorical_kl", "categorical.kl_fwd")
def _kl(
    post_BTGC: Tensor, prior_BTGC: Tensor, unimix: float, free_nats: float, per_step: bool
) -> tuple[Tensor, Tensor]:
    B, T = post_BTGC.shape[:2]
    return post_BTGC.new_empty((3,), dtype=torch.float32), post_BTGC.new_empty((B * T,), dtype=torch.float32)


@backend.op("categorical_kl_backward", "categorical.kl_bwd")
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
    return post_BTGC.new_empty(post_BTGC.shape), prior_BTGC.new_empty(prior_BTGC.shape)


def _sample_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits_NC, _, ctx.unimix = inputs
    ctx.save_for_backward(logits_NC)


def _sample_grad(ctx: Any, grad_NC: Tensor) -> tuple[Tensor, None, None]:
    (logits_NC,) = ctx.saved_tensors
    return _sample_backward(grad_NC, logits_NC, ctx.unimix), None, None


torch.library.register_autograd("storm_fast::categorical_sample", _sample_grad, setup_context=_sample_setup)


def _kl_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    post_BTGC, prior_BTGC, *ctx.numbers = inputs
    ctx.save_for_backward(post_BTGC, prior_BTGC, *output)
    ctx.set_materialize_grads(False)  # the output without a gradient would get zeros
    ctx.mark_non_differentiable(output[1])


def _kl_grad(ctx: Any, grad_3: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    if grad_3 is None:
        return None, None, None, None, None
    post_BTGC, prior_BTGC = _kl_backward(grad_3, *ctx.saved_tensors, *ctx.numbers)
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
    return _draw(logits_NC.detach().reshape(-1, logits_NC.shape[-1]), u_N.flatten(), unimix).view(u_N.shape)


def sample(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    """One-hot draws [..., C] with the gradient of the probabilities (STORM sec. 3.1); see `reference.sample`.

    Raises:
        ValueError: where u is not [...] for logits [..., C].
    """
    _check_draw(logits_NC, u_N)
    if not backend.is_triton(logits_NC):
        return reference.sample(logits_NC, u_N, unimix)
    return _sample(logits_NC.reshape(-1, logits_NC.shape[-1]), u_N.flatten(), unimix).view(logits_NC.shape)


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
    out_3 = _kl(post_BTGC, prior_BTGC, unimix, free_nats, per == "step")[0]
    dynamics, representation, kl = out_3.unbind()
    return dynamics, representation, kl.detach()


def _as_btgc(logits_NGC: Tensor) -> Tensor:
    return logits_NGC[None] if logits_NGC.ndim == 3 else logits_NGC.flatten(0, -4)
