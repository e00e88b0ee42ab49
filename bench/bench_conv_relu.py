"""Bias and ReLU behind the encoder's first folded convolution, over the frames of a rollout's contexts."""

import torch
from torch import Tensor

from bench.conftest import Compare
from bench.instrument.forms import DEVICE, IS_GPU, OPERATION, in_forms
from bench.instrument.harness import Subject, operation_forms
from storm_fast.kernels.conv_relu import conv_relu
from storm_fast.kernels.cost import Cost


@in_forms(*OPERATION)
def bench_conv_relu(compare: Compare, form: str) -> None:
    N = 8192 if IS_GPU else 1024

    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        x_NIYX = torch.rand(N, 64, 64, 3, dtype=torch.bfloat16, device=DEVICE).permute(0, 3, 1, 2)
        weight_OIYX = torch.randn(32, 3, 4, 4, dtype=torch.bfloat16, device=DEVICE)
        return x_NIYX, weight_OIYX.contiguous(memory_format=torch.channels_last), torch.randn(32, device=DEVICE)

    def call(x_NIYX: Tensor, weight_OIYX: Tensor, bias_O: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
            return conv_relu(x_NIYX, weight_OIYX, bias_O, (2, 2), (1, 1))

    def subject() -> Subject:
        read, written = N * 64 * 64 * 3, N * 32 * 32 * 32
        return Subject(
            inputs=inputs,
            forms=operation_forms(call),
            cost=Cost(flops=2 * written * 3 * 16, bytes=2 * (read + written)),
        )

    compare(f"convolution, bias, ReLU, {N} frames", form, subject)
