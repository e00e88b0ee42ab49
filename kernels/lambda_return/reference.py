"""The lambda-return in plain PyTorch: a reversed scan over the horizon (STORM eq. 8)."""

from typing import Literal

import torch
from torch import Tensor


def lambda_return(
    reward_BT: Tensor,
    end_BT: Tensor,
    value_BS: Tensor,
    gamma: float,
    lam: float,
    bootstrap: Literal["current", "next"],
) -> Tensor:
    """G_t = r_t + gamma (1 - end_t) [(1 - lam) V + lam G_{t+1}], G_T = V(s_T).

    Args:
        reward_BT: imagined rewards.
        end_BT: 1 where the episode ends with step t, or the probability of it.
        value_BS: V(s_0) ... V(s_T); S = T + 1.
        gamma: discount per step.
        lam: share of the longer return.
        bootstrap: V is V(s_t) for `current` (released code), V(s_{t+1}) for `next` (eq. 8).

    Returns:
        return_BT: float32.
    """
    T = reward_BT.shape[1]
    if value_BS.shape != (reward_BT.shape[0], T + 1) or end_BT.shape != reward_BT.shape:
        got = f"{tuple(reward_BT.shape)}, {tuple(end_BT.shape)}, {tuple(value_BS.shape)}"
        raise ValueError(f"want reward [B, T], end [B, T], value [B, T + 1]; got {got}")
    discount_BT = gamma * (1 - end_BT.float())
    mixed_BT = value_BS[:, :-1] if bootstrap == "current" else value_BS[:, 1:]
    step_BT = reward_BT.float() + discount_BT * (1 - lam) * mixed_BT.float()
    return_B = value_BS[:, -1].float()
    returns = []
    for t in reversed(range(T)):
        return_B = step_BT[:, t] + discount_BT[:, t] * lam * return_B
        returns.append(return_B)
    return torch.stack(returns[::-1], dim=1)


def reach_weights(end_BT: Tensor, gamma: float) -> Tensor:
    """The discounted chance that step t is reached: product of gamma (1 - end_k) over k < t, float32 [B, T]."""
    discount_BT = gamma * (1 - end_BT.float())
    return torch.cat([torch.ones_like(discount_BT[:, :1]), discount_BT[:, :-1]], dim=1).cumprod(1)
