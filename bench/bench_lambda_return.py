"""The lambda-return and its weights at the agent's size."""

import torch
from torch import Tensor

from bench.conftest import Compare
from bench.instrument.forms import DEVICE, OPERATION, in_forms
from bench.instrument.harness import Subject, operation_forms
from storm_fast.kernels import lambda_return
from storm_fast.kernels.cost import Cost

B, T = 1024, 16


def ends() -> Tensor:
    return (torch.rand(B, T, device=DEVICE) < 0.05).float()


@in_forms(*OPERATION)
def bench_lambda_return(compare: Compare, form: str) -> None:
    def subject() -> Subject:
        return Subject(
            inputs=lambda: (torch.randn(B, T, device=DEVICE), ends(), torch.randn(B, T + 1, device=DEVICE)),
            forms=operation_forms(lambda r, e, v: lambda_return.lambda_return(r, e, v, 0.985, 0.95, "current")),
            cost=Cost(flops=8 * B * T, bytes=4 * B * (4 * T + 1)),
            tolerance=1e-5,  # float32 throughout
        )

    compare(f"lambda-return, {B} x {T}", form, subject)


@in_forms(*OPERATION)
def bench_reach_weights(compare: Compare, form: str) -> None:
    def subject() -> Subject:
        return Subject(
            inputs=lambda: (ends(),),
            forms=operation_forms(lambda e: lambda_return.reach_weights(e, 0.985)),
            cost=Cost(flops=2 * B * T, bytes=8 * B * T),
            tolerance=1e-5,
        )

    compare(f"chance of being reached, {B} x {T}", form, subject)
