"""Two-hot loss, encoding and decoding at the model's sizes: 255 bins."""

import pytest
import torch
from torch import Tensor

from bench.conftest import Compare
from bench.instrument.forms import DEVICE, OPERATION, in_forms
from bench.instrument.harness import Subject, operation_forms
from storm_fast.kernels import twohot
from storm_fast.kernels.cost import Cost

V = 255
DTYPE = torch.bfloat16


def logits(N: int) -> Tensor:
    return torch.randn(N, V, device=DEVICE).to(DTYPE)


@in_forms(*OPERATION)
@pytest.mark.parametrize("N", [16 * 64, 1024 * 16], ids=["model", "critic"])
def bench_loss_and_gradient(compare: Compare, N: int, form: str) -> None:
    def call(x_NV: Tensor, target_N: Tensor, grad_N: Tensor) -> tuple[Tensor, ...]:
        loss_N = twohot.loss(x_NV, target_N)
        return loss_N, *torch.autograd.grad(loss_N, x_NV, grad_N)

    def subject() -> Subject:
        return Subject(
            inputs=lambda: (logits(N).requires_grad_(), torch.randn(N, device=DEVICE), torch.rand(N, device=DEVICE)),
            forms=operation_forms(call),
            # Forward reads the logits, backward reads them and writes their gradient.
            cost=Cost(flops=12 * N * V, bytes=3 * N * V * DTYPE.itemsize + 20 * N),
        )

    compare(f"two-hot loss and gradient, {N} x {V}", form, subject)


@in_forms(*OPERATION)
@pytest.mark.parametrize("N", [1024, 1024 * 17], ids=["imagine", "critic"])
def bench_decode(compare: Compare, N: int, form: str) -> None:
    def subject() -> Subject:
        return Subject(
            inputs=lambda: (logits(N),),
            forms=operation_forms(twohot.decode),
            cost=Cost(flops=6 * N * V, bytes=N * V * DTYPE.itemsize + 4 * N),
        )

    compare(f"two-hot decoded, {N} x {V}", form, subject)


@in_forms(*OPERATION)
def bench_encode(compare: Compare, form: str) -> None:
    N = 1024

    def subject() -> Subject:
        return Subject(
            inputs=lambda: (10 * torch.randn(N, device=DEVICE),),
            forms=operation_forms(lambda x: twohot.encode(x, V)),
            cost=Cost(flops=10 * N, bytes=4 * N * (V + 1)),
        )

    compare(f"two-hot encoded, {N} x {V}", form, subject)
