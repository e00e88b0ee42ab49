"""Drawing latents and the KL losses at the model's sizes: 32 variables of 32 classes."""

from collections.abc import Callable

import pytest
import torch

from bench.forms import DEVICE, FORMS
from storm_fast.kernels import categorical
from storm_fast.kernels.cost import Cost

G, C = 32, 32
DTYPE = torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 1024, 8192], ids=["act", "imagine", "context"])
def bench_sample(timed: Callable[..., None], rows: int, form: str) -> None:
    logits_NGC = torch.randn(rows, G, C, device=DEVICE).to(DTYPE)
    u_NG = torch.rand(rows, G, device=DEVICE)
    N = rows * G
    cost = Cost(flops=7 * N * C, bytes=N * (2 * C * DTYPE.itemsize + 4))
    timed(form, lambda: categorical.sample(logits_NGC, u_NG, 0.01), cost)


@pytest.mark.parametrize("form", FORMS)
def bench_kl_losses_and_gradients(timed: Callable[..., None], form: str) -> None:
    post, prior = (torch.randn(16, 64, G, C, device=DEVICE).to(DTYPE).requires_grad_() for _ in range(2))

    def call() -> tuple[torch.Tensor, ...]:
        losses = categorical.kl_losses(post[:, 1:], prior[:, :-1], 0.01, 1.0, "batch")
        return torch.autograd.grad(0.5 * losses[0] + 0.1 * losses[1], (post, prior))

    size = 16 * 63 * G * C
    # Forward reads both, backward reads both and writes both.
    timed(form, call, Cost(flops=60 * size, bytes=6 * size * DTYPE.itemsize))
