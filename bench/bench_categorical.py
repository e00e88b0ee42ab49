"""Drawing latents and actions, and the KL losses, at the model's sizes: 32 variables of 32 classes."""

import pytest
import torch
from torch import Tensor

from bench.conftest import Compare
from bench.instrument.forms import DEVICE, OPERATION, in_forms
from bench.instrument.harness import Subject, operation_forms
from storm_fast.kernels import categorical
from storm_fast.kernels.cost import Cost

G, C = 32, 32
DTYPE = torch.bfloat16

# A draw at a class's very edge may fall on either side, by the order of a sum: one of ten thousand is allowed.
EDGES = (2 * 1e-4) ** 0.5


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(DTYPE)


@in_forms(*OPERATION)
@pytest.mark.parametrize("rows", [1, 1024, 8192], ids=["act", "imagine", "context"])
def bench_sample(compare: Compare, rows: int, form: str) -> None:
    N = rows * G

    def subject() -> Subject:
        return Subject(
            inputs=lambda: (logits(rows, G, C), torch.rand(rows, G, device=DEVICE)),
            forms=operation_forms(lambda x, u: categorical.sample(x, u, 0.01)),
            cost=Cost(flops=7 * N * C, bytes=N * (2 * C * DTYPE.itemsize + 4)),
            tolerance=EDGES,
            row_tolerance=0.6,  # two draws of a row's 32
        )

    compare(f"latents drawn, {rows} x {G} x {C}", form, subject)


@in_forms(*OPERATION)
def bench_sample_and_gradient(compare: Compare, form: str) -> None:
    rows = 1024
    N = rows * G

    def call(x: Tensor, u: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(categorical.sample(x, u, 0.01), x, grad)

    def subject() -> Subject:
        return Subject(
            inputs=lambda: (
                logits(rows, G, C).requires_grad_(),
                torch.rand(rows, G, device=DEVICE),
                logits(rows, G, C),
            ),
            forms=operation_forms(call),
            # Forward reads logits and writes the sample; backward reads logits and gradient and writes one.
            cost=Cost(flops=13 * N * C, bytes=N * (5 * C * DTYPE.itemsize + 4)),
        )

    compare(f"latents drawn, and gradient, {rows} x {G} x {C}", form, subject)


@in_forms(*OPERATION)
@pytest.mark.parametrize("rows", [1, 1024], ids=["act", "imagine"])
def bench_draw(compare: Compare, rows: int, form: str) -> None:
    actions = 18

    def subject() -> Subject:
        return Subject(
            inputs=lambda: (logits(rows, actions), torch.rand(rows, device=DEVICE)),
            # Compared as one-hot rows: the distance between two classes' numbers means nothing.
            compared=operation_forms(
                lambda x, u: torch.nn.functional.one_hot(categorical.draw(x, u, 0.0), actions).float()
            ),
            forms=operation_forms(lambda x, u: categorical.draw(x, u, 0.0)),
            cost=Cost(flops=7 * rows * actions, bytes=rows * (actions * DTYPE.itemsize + 12)),
            tolerance=0.05,  # one draw of a thousand at an edge
            row_tolerance=2.0,
        )

    compare(f"actions drawn, {rows} x {actions}", form, subject)


@in_forms(*OPERATION)
def bench_kl_losses_and_gradients(compare: Compare, form: str) -> None:
    def call(post: Tensor, prior: Tensor) -> tuple[Tensor, ...]:
        losses = categorical.kl_losses(post[:, 1:], prior[:, :-1], 0.01, 1.0, "batch")
        return (losses[2], *torch.autograd.grad(0.5 * losses[0] + 0.1 * losses[1], (post, prior)))

    def subject() -> Subject:
        size = 16 * 63 * G * C
        return Subject(
            inputs=lambda: tuple(logits(16, 64, G, C).requires_grad_() for _ in range(2)),
            forms=operation_forms(call),
            # Forward reads both, backward reads both and writes both.
            cost=Cost(flops=60 * size, bytes=6 * size * DTYPE.itemsize),
        )

    compare(f"KL losses and gradients, 16 x 63 x {G} x {C}", form, subject)
