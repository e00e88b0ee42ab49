"""Layer normalisation with its ReLU or residual at the model's sizes: 512 columns."""

from collections.abc import Callable

import pytest
import torch

from bench.forms import DEVICE, FORMS
from storm_fast.kernels import norm
from storm_fast.kernels.cost import Cost

D = 512
DTYPE = torch.bfloat16


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE.type, DTYPE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["relu", "residual"])
@pytest.mark.parametrize("N", [1, 1024, 8192], ids=["act", "imagine", "context"])
def bench_norm(timed: Callable[..., None], N: int, kind: str, form: str) -> None:
    x_ND, weight_D, bias_D = torch.randn(N, D, device=DEVICE).to(DTYPE), *torch.randn(2, D, device=DEVICE)
    residual_ND = torch.randn(N, D, device=DEVICE).to(DTYPE) if kind == "residual" else None

    @torch.no_grad()
    def call() -> torch.Tensor:
        with autocast():
            return norm.layer_norm(x_ND, weight_D, bias_D, 1e-6, residual_ND, kind == "relu").to(DTYPE)

    tensors = 2 if residual_ND is None else 3
    timed(form, call, Cost(flops=8 * N * D, bytes=tensors * N * D * DTYPE.itemsize + 8 * D))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("N", "kind"), [(1024, "residual"), (16 * 1024, "relu")], ids=["model", "agent"])
def bench_norm_and_gradients(timed: Callable[..., None], N: int, kind: str, form: str) -> None:
    x_ND = torch.randn(N, D, device=DEVICE).to(DTYPE).requires_grad_()
    weight_D, bias_D = (torch.randn(D, device=DEVICE).requires_grad_() for _ in range(2))
    residual_ND = torch.randn(N, D, device=DEVICE).to(DTYPE).requires_grad_() if kind == "residual" else None
    leaves = [x for x in (x_ND, weight_D, bias_D, residual_ND) if x is not None]
    grad_ND = torch.randn(N, D, device=DEVICE).to(DTYPE)

    def call() -> tuple[torch.Tensor, ...]:
        with autocast():
            y_ND = norm.layer_norm(x_ND, weight_D, bias_D, 1e-6, residual_ND, kind == "relu").to(DTYPE)
        return torch.autograd.grad(y_ND, leaves, grad_ND)

    # Forward reads its inputs and writes one result; backward reads them and the incoming gradient and writes one.
    tensors = 5 if residual_ND is None else 7
    timed(form, call, Cost(flops=25 * N * D, bytes=tensors * N * D * DTYPE.itemsize + 24 * D))
