"""The lambda-return as a torch op, and the public functions, which run the kernel or the reference.

Both are targets and weights: no gradient flows through them.
"""

from typing import Literal

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.lambda_return import reference

# kernel.py is imported where it runs: a process that uses the references alone never loads Triton.


def _return(reward_BT: Tensor, end_BT: Tensor, value_BS: Tensor, gamma: float, lam: float, is_next: bool) -> Tensor:
    from storm_fast.kernels.lambda_return import kernel

    return kernel.return_fwd(reward_BT, end_BT, value_BS, gamma, lam, is_next)


def _return_fake(reward_BT: Tensor, *_: Tensor | float | bool) -> Tensor:
    return reward_BT.new_empty(reward_BT.shape, dtype=torch.float32)


def _reach(end_BT: Tensor, gamma: float) -> Tensor:
    from storm_fast.kernels.lambda_return import kernel

    return kernel.reach_fwd(end_BT, gamma)


def _reach_fake(end_BT: Tensor, gamma: float) -> Tensor:
    return end_BT.new_empty(end_BT.shape, dtype=torch.float32)


_OPS: backend.Ops = {
    "lambda_return(Tensor reward, Tensor end, Tensor value, float gamma, float lam, bool is_next) -> Tensor": (
        _return,
        _return_fake,
    ),
    "reach_weights(Tensor end, float gamma) -> Tensor": (_reach, _reach_fake),
}
backend.register(_OPS)


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
    return_BT: Tensor = torch.ops.storm_fast.lambda_return(reward_BT, end_BT, value_BS, gamma, lam, bootstrap == "next")
    return return_BT


@torch.no_grad()
def reach_weights(end_BT: Tensor, gamma: float) -> Tensor:
    """The discounted chance that each step is reached, float32 [B, T]; see `reference.reach_weights`. No gradient."""
    if not backend.is_triton(end_BT):
        return reference.reach_weights(end_BT, gamma)
    weight_BT: Tensor = torch.ops.storm_fast.reach_weights(end_BT, gamma)
    return weight_BT
