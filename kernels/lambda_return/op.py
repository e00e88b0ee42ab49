"""The lambda-return as a torch op, and the public functions, which run the kernel or the reference.

Both are targets and weights: no gradient flows through them.
"""

from typing import Literal

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.lambda_return import reference


@backend.op("lambda_return", "lambda_return.return_fwd")
def _return(reward_BT: Tensor, end_BT: Tensor, value_BS: Tensor, gamma: float, lam: float, is_next: bool) -> Tensor:
    return reward_BT.new_empty(reward_BT.shape, dtype=torch.float32)


@backend.op("reach_weights", "lambda_return.reach_fwd")
def _reach(end_BT: Tensor, gamma: float) -> Tensor:
    return end_BT.new_empty(end_BT.shape, dtype=torch.float32)


@torch.no_grad()
def lambda_return(
    reward_BT: Tensor,
    end_BT: Tensor,
    value_BS: Tensor,
    gamma: float,
    lam: float,
    bootstrap: Literal["current", "next"],
) -> Tensor:
    """The lambda-return (STORM eq. 8), float32 [B, T]; see `reference.lambda_return`. No gradient.

    Raises:
        ValueError: where the shapes are not [B, T], [B, T] and [B, T + 1].
    """
    B, T = reward_BT.shape
    if value_BS.shape != (B, T + 1) or end_BT.shape != reward_BT.shape:
        got = f"{tuple(reward_BT.shape)}, {tuple(end_BT.shape)}, {tuple(value_BS.shape)}"
        raise ValueError(f"want reward [B, T], end [B, T], value [B, T + 1]; got {got}")
    if not backend.is_triton(reward_BT):
        return reference.lambda_return(reward_BT, end_BT, value_BS, gamma, lam, bootstrap)
    return _return(reward_BT, end_BT, value_BS, gamma, lam, bootstrap == "next")


@torch.no_grad()
def reach_weights(end_BT: Tensor, gamma: float) -> Tensor:
    """The discounted chance that each step is reached, float32 [B, T]; see `reference.reach_weights`. No gradient."""
    if not backend.is_triton(end_BT):
        return reference.reach_weights(end_BT, gamma)
    return _reach(end_BT, gamma)
