"""The reconstruction error and its gradient at the world model's batch: 16 x 64 frames."""

import torch
from torch import Tensor

from bench.conftest import Compare
from bench.instrument.forms import DEVICE, OPERATION, in_forms
from bench.instrument.harness import Subject, operation_forms
from storm_fast.kernels import reconstruction
from storm_fast.kernels.cost import Cost

DTYPE = torch.bfloat16


@in_forms(*OPERATION)
def bench_squared_error_and_gradient(compare: Compare, form: str) -> None:
    N, Y, X, P = 16 * 64, 64, 64, 3

    def inputs() -> tuple[Tensor, ...]:
        image_NPYX = torch.rand(N, P, Y, X, device=DEVICE).to(DTYPE).contiguous(memory_format=torch.channels_last)
        obs_NYXP = torch.randint(256, (N, Y, X, P), dtype=torch.uint8, device=DEVICE)
        return image_NPYX.requires_grad_(), obs_NYXP, torch.rand(N, device=DEVICE)

    def call(image_NPYX: Tensor, obs_NYXP: Tensor, grad_N: Tensor) -> tuple[Tensor, ...]:
        error_N = reconstruction.squared_error(image_NPYX, obs_NYXP)
        return error_N, *torch.autograd.grad(error_N, image_NPYX, grad_N)

    def subject() -> Subject:
        size = N * Y * X * P
        return Subject(
            inputs=inputs,
            forms=operation_forms(call),
            # Forward reads image and frame, backward reads both and writes a gradient.
            cost=Cost(flops=7 * size, bytes=size * (3 * DTYPE.itemsize + 2) + 8 * N),
        )

    compare(f"reconstruction error and gradient, {N} frames", form, subject)
