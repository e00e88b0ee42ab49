"""The lambda-return at the agent's size."""

from collections.abc import Callable

import pytest
import torch

from bench.forms import DEVICE, FORMS
from storm_fast.kernels.cost import Cost
from storm_fast.kernels.lambda_return import lambda_return


@pytest.mark.parametrize("form", FORMS)
def bench_lambda_return(timed: Callable[..., None], form: str) -> None:
    B, T = 1024, 16
    reward_BT, end_BT = torch.randn(B, T, device=DEVICE), torch.zeros(B, T, device=DEVICE)
    value_BS = torch.randn(B, T + 1, device=DEVICE)
    cost = Cost(flops=8 * B * T, bytes=4 * B * (4 * T + 1))
    timed(form, lambda: lambda_return(reward_BT, end_BT, value_BS, 0.985, 0.95, "current"), cost)
