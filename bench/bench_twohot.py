"""Two-hot loss and decode at the model's sizes: 255 bins."""

from collections.abc import Callable

import pytest
import torch

from bench.forms import DEVICE, FORMS
from storm_fast.kernels import twohot
from storm_fast.kernels.cost import Cost

V = 255
DTYPE = torch.bfloat16
CASES = {"model": 16 * 64, "critic": 1024 * 16}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("N", CASES.values(), ids=CASES)
def bench_loss_and_gradient(timed: Callable[..., None], N: int, form: str) -> None:
    logits_NV = torch.randn(N, V, device=DEVICE).to(DTYPE).requires_grad_()
    target_N, grad_N = torch.randn(N, device=DEVICE), torch.ones(N, device=DEVICE)
    # Forward reads the logits, backward reads them and writes their gradient.
    cost = Cost(flops=12 * N * V, bytes=3 * N * V * DTYPE.itemsize + 20 * N)
    timed(form, lambda: torch.autograd.grad(twohot.loss(logits_NV, target_N), logits_NV, grad_N), cost)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("N", [1024, 1024 * 17], ids=["imagine", "critic"])
def bench_decode(timed: Callable[..., None], N: int, form: str) -> None:
    logits_NV = torch.randn(N, V, device=DEVICE).to(DTYPE)
    timed(form, lambda: twohot.decode(logits_NV), Cost(flops=6 * N * V, bytes=N * V * DTYPE.itemsize + 4 * N))
