"""Symlog two-hot regression in plain PyTorch (DV3; STORM sec. 3.1, L^sym)."""

import torch
from torch import Tensor

BOUND = 20.0  # the bins span [-BOUND, BOUND] in symlog space


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|), in float32."""
    x = x.float()
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1), the inverse of `symlog`, in float32."""
    x = x.float()
    return x.sign() * x.abs().expm1()


def bins(V: int, device: torch.device | None = None) -> Tensor:
    """The V bin centres in symlog space, float32 [V]."""
    return torch.linspace(-BOUND, BOUND, V, device=device)


def encode(x_N: Tensor, V: int) -> Tensor:
    """Spread symlog(x) over its two neighbouring bins, in proportion to nearness.

    Targets beyond the outermost bins are clamped to them.

    Args:
        x_N: values in the units of the reward, [...], any float dtype.
        V: bins.

    Returns:
        p_NV: float32 [..., V]; two neighbours are positive, rows sum to 1.
    """
    y_N, bin_V = symlog(x_N), bins(V, x_N.device)
    upper_N = torch.bucketize(y_N, bin_V).clamp(1, V - 1)
    spacing = 2 * BOUND / (V - 1)
    weight_N1 = ((y_N - bin_V[upper_N - 1]) / spacing).clamp(0, 1)[..., None]
    p_NV = torch.zeros(*x_N.shape, V, device=x_N.device)
    p_NV.scatter_(-1, upper_N[..., None], weight_N1)
    p_NV.scatter_(-1, upper_N[..., None] - 1, 1 - weight_N1)
    return p_NV


def loss(logits_NW: Tensor, target_N: Tensor, V: int | None = None) -> Tensor:
    """Cross-entropy in nats of the logits to the two-hot encoding of the target, float32 [...].

    Args:
        logits_NW: [..., W], of V bins and then whatever a product with a margin left there.
        target_N: values in the units of the reward.
        V: bins; by default all W.

    Raises:
        ValueError: where the target is not [...] for logits [..., W].
    """
    if target_N.shape != logits_NW.shape[:-1]:
        raise ValueError(f"want logits [..., W], target [...]; got {tuple(logits_NW.shape)}, {tuple(target_N.shape)}")
    logits_NV = logits_NW[..., :V]
    p_NV = encode(target_N, logits_NV.shape[-1])
    return -(p_NV * logits_NV.float().log_softmax(-1)).sum(-1)


def decode(logits_NW: Tensor, V: int | None = None) -> Tensor:
    """symexp of the expected bin under softmax(logits), float32 [...]; V as in `loss`."""
    # float32: near 20, bf16 steps by 0.125, almost a whole two-hot bin (0.157).
    p_NV = logits_NW[..., :V].float().softmax(-1)
    return symexp((p_NV * bins(p_NV.shape[-1], p_NV.device)).sum(-1))
