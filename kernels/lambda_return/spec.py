"""Where the agent needs returns: imagined trajectories of 1,024 x 16 steps."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from storm_fast.kernels.cost import Cost
from storm_fast.kernels.lambda_return import lambda_return, reach_weights
from storm_fast.kernels.spec import Budget, Draw, Spec, Use

B, T = 1024, 16


def _ends(draw: Draw, B: int, T: int) -> Tensor:
    """Of the probabilities a third are 0 and a third are 1."""
    return (3 * draw.uniform(B, T) - 1).clamp(0, 1)


def _trajectory(draw: Draw, B: int, T: int) -> tuple[Tensor, ...]:
    return draw.normal(B, T), _ends(draw, B, T), draw.normal(B, T + 1)


def _return(reward_BT: Tensor, end_BT: Tensor, value_BS: Tensor, bootstrap: Literal["current", "next"]) -> Tensor:
    return lambda_return(reward_BT, end_BT, value_BS, 0.985, 0.95, bootstrap)


_SMALL = {"one": (1, 1), "odd": (65, 15), "model": (3, 16)}
# Rewards of both signs, of unit size, up to the horizon of the discounts.
_FLOORS = (10.0,)

SPECS = (
    Spec(
        "lambda_return.lambda_return",
        partial(_return, bootstrap="current"),
        _trajectory,
        small=_SMALL,
        full={"agent": Use("lambda-return, 1024 x 16", (B, T), Cost(flops=8 * B * T, bytes=4 * B * (4 * T + 1)))},
        floors=lambda *_: _FLOORS,
        dtypes=(torch.float32,),
        tolerance=1e-5,  # float32 throughout
    ),
    Spec(
        "lambda_return.next",
        partial(_return, bootstrap="next"),
        _trajectory,
        small=_SMALL,
        full={},
        floors=lambda *_: _FLOORS,
        dtypes=(torch.float32,),
    ),
    Spec(
        "lambda_return.reach_weights",
        partial(reach_weights, gamma=0.985),
        lambda draw, B, T: (_ends(draw, B, T),),
        small=_SMALL,
        full={"agent": Use("chance of being reached, 1024 x 16", (B, T), Cost(flops=2 * B * T, bytes=8 * B * T))},
        dtypes=(torch.float32,),
        tolerance=1e-5,
    ),
)

BUDGETS = {"_return_fwd": Budget(80), "_reach_fwd": Budget(48)}
