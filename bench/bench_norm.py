"""Layer normalisation with its ReLU or residual at the model's sizes: 512 columns."""

import pytest
import torch
from torch import Tensor

from bench.conftest import Compare
from bench.instrument.forms import DEVICE, OPERATION, in_forms
from bench.instrument.harness import Subject, operation_forms
from storm_fast.kernels import norm
from storm_fast.kernels.cost import Cost

D = 512
DTYPE = torch.bfloat16


def normed(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, *residual_ND: Tensor) -> Tensor:
    with torch.autocast(DEVICE.type, DTYPE):
        relu = not residual_ND
        return norm.layer_norm(x_ND, weight_D, bias_D, 1e-6, *(residual_ND or [None]), relu).to(DTYPE)


def inputs(N: int, kind: str, learn: bool) -> tuple[Tensor, ...]:
    rows = [torch.randn(N, D, device=DEVICE).to(DTYPE) for _ in range(1 + (kind == "residual"))]
    weights = torch.randn(2, D, device=DEVICE).unbind()
    return tuple(x.clone().requires_grad_(learn) for x in (rows[0], *weights, *rows[1:]))


@in_forms(*OPERATION)
@pytest.mark.parametrize("kind", ["relu", "residual"])
@pytest.mark.parametrize("N", [1, 1024, 8192], ids=["act", "imagine", "context"])
def bench_norm(compare: Compare, N: int, kind: str, form: str) -> None:
    def subject() -> Subject:
        tensors = 2 if kind == "relu" else 3
        return Subject(
            inputs=lambda: inputs(N, kind, learn=False),
            forms=operation_forms(normed),
            cost=Cost(flops=8 * N * D, bytes=tensors * N * D * DTYPE.itemsize + 8 * D),
        )

    compare(f"layer norm and {kind}, {N} x {D}", form, subject)


@in_forms(*OPERATION)
@pytest.mark.parametrize(("B", "T"), [(1024, 1), (1024, 8), (16, 64)], ids=["imagine", "context", "model"])
def bench_norm_and_positions(compare: Compare, B: int, T: int, form: str) -> None:
    """What begins the sequence model: each step's token and the table's row of its position, normalised."""

    def subject() -> Subject:
        return Subject(
            inputs=lambda: (
                torch.randn(B, T, D, device=DEVICE).to(DTYPE),
                *torch.randn(2, D, device=DEVICE).unbind(),
                torch.randn(T, D, device=DEVICE),
            ),
            forms=operation_forms(normed),
            cost=Cost(flops=8 * B * T * D, bytes=2 * B * T * D * DTYPE.itemsize + 4 * T * D + 8 * D),
        )

    compare(f"layer norm and positions, {B} x {T} x {D}", form, subject)


@in_forms(*OPERATION)
@pytest.mark.parametrize(("N", "kind"), [(1024, "residual"), (16 * 1024, "relu")], ids=["model", "agent"])
def bench_norm_and_gradients(compare: Compare, N: int, kind: str, form: str) -> None:
    def call(grad_ND: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(normed(*leaves), leaves, grad_ND)

    def subject() -> Subject:
        # Forward reads its inputs and writes one result; backward reads them and the incoming gradient, writes one.
        tensors = 5 if kind == "relu" else 7
        return Subject(
            inputs=lambda: (torch.randn(N, D, device=DEVICE).to(DTYPE), *inputs(N, kind, learn=True)),
            forms=operation_forms(call),
            cost=Cost(flops=25 * N * D, bytes=tensors * N * D * DTYPE.itemsize + 24 * D),
            # An element near zero may change sign under the ReLU; with a residual its sum with x is rounded to bf16 by
            # some forms, before it is normalised.
            tolerance=2e-2,
        )

    compare(f"layer norm and {kind}, forward and backward, {N} x {D}", form, subject)
