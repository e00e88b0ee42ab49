"""Categorical latents in plain PyTorch: unimix, inverse-CDF draw, straight-through gradient, KL with free nats."""

from typing import Literal

import torch
from torch import Tensor


def probabilities(logits_NC: Tensor, unimix: float) -> Tensor:
    """(1 - unimix) softmax(logits) + unimix / C over the last axis, in float32 (DV3; STORM's released code)."""
    C = logits_NC.shape[-1]
    return (1 - unimix) * torch.softmax(logits_NC.float(), dim=-1) + unimix / C


def draw(logits_NC: Tensor, u_N: Tensor, unimix: float = 0.0) -> Tensor:
    """Draw classes by inverse CDF: the number of cumulative probabilities, without the last, that are <= u.

    Args:
        logits_NC: unnormalised log-probabilities [..., C], any float dtype; computed in float32.
        u_N: uniform draws in [0, 1), float32, [...]; an argument, so that every backend shares them.
        unimix: share of the uniform distribution.

    Returns:
        class_N: int64 in [0, C).
    """
    return _invert(probabilities(logits_NC, unimix), u_N)


def _invert(p_NC: Tensor, u_N: Tensor) -> Tensor:
    """The class at which the cumulative probability passes u."""
    return (p_NC.cumsum(-1)[..., :-1] <= u_N[..., None]).sum(-1)


def sample(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    """Draw one-hot samples whose gradient is that of the probabilities (STORM sec. 3.1).

    Args:
        logits_NC: as in `draw`.
        u_N: as in `draw`.
        unimix: as in `draw`.

    Returns:
        sample_NC: one-hot, dtype of ``logits_NC``; backward treats it as `probabilities` (straight-through).
    """
    p_NC = probabilities(logits_NC, unimix)
    class_N = _invert(p_NC.detach(), u_N)
    onehot_NC = class_N[..., None] == torch.arange(logits_NC.shape[-1], device=class_N.device)
    if not p_NC.requires_grad:
        # Zero, or NaN where the row has one: a NaN must not become a valid sample.
        return onehot_NC + (0 * p_NC[..., :1]).to(logits_NC.dtype)
    # Grouped so that the added term is exactly zero: the sample stays exactly one-hot.
    return (onehot_NC + (p_NC - p_NC.detach())).to(logits_NC.dtype)


def kl(p_logits_NGC: Tensor, q_logits_NGC: Tensor, unimix: float) -> Tensor:
    """KL[p || q] in nats of the unimixed distributions, summed over the G variables, float32 [...]."""
    p_NGC = probabilities(p_logits_NGC, unimix)
    log_ratio_NGC = p_NGC.log() - probabilities(q_logits_NGC, unimix).log()
    return (p_NGC * log_ratio_NGC).sum((-2, -1))


def kl_losses(
    post_logits_NGC: Tensor,
    prior_logits_NGC: Tensor,
    unimix: float,
    free_nats: float,
    per: Literal["batch", "step"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Dynamics and representation loss (STORM eq. 5) and the KL itself, averaged over all rows.

    Args:
        post_logits_NGC: the encoder's, of the step that is predicted.
        prior_logits_NGC: the dynamics head's, from the step before.
        unimix: share of the uniform distribution in both.
        free_nats: KL below this carries no gradient.
        per: whether the maximum is taken of the mean KL or of each row's.

    Returns:
        dynamics (gradient to the prior alone), representation (to the posterior alone), KL in nats; all 0-d.
    """

    def free(kl_N: Tensor) -> Tensor:
        if per == "batch":
            return kl_N.mean().clamp_min(free_nats)
        return kl_N.clamp_min(free_nats).mean()

    dynamics_N = kl(post_logits_NGC.detach(), prior_logits_NGC, unimix)
    representation_N = kl(post_logits_NGC, prior_logits_NGC.detach(), unimix)
    return free(dynamics_N), free(representation_N), dynamics_N.detach().mean()
