"""Frames for the encoder: the world model's batch, and the contexts of imagination straight from the replay."""

import torch
from torch import Tensor

from bench.conftest import Compare
from bench.instrument.forms import DEVICE, OPERATION, in_forms
from bench.instrument.harness import Subject, operation_forms
from storm_fast.kernels import frames
from storm_fast.kernels.cost import Cost

FRAME = (64, 64, 3)
DTYPE = torch.bfloat16


def pixels(count: int) -> Tensor:
    return torch.randint(256, (count, *FRAME), dtype=torch.uint8, device=DEVICE)


@in_forms(*OPERATION)
def bench_normalise(compare: Compare, form: str) -> None:
    N = 1024

    def subject() -> Subject:
        size = pixels(1).numel() * N
        return Subject(
            inputs=lambda: (pixels(N),),
            forms=operation_forms(lambda x: frames.normalise(x, None, DTYPE, torch.channels_last)),
            cost=Cost(flops=size, bytes=3 * size),
        )

    compare(f"frames normalised, {N}", form, subject)


@in_forms(*OPERATION)
def bench_gather(compare: Compare, form: str) -> None:
    N, M = 8192, 10_000

    def subject() -> Subject:
        size = pixels(1).numel() * N
        return Subject(
            inputs=lambda: (pixels(M), torch.randperm(M, device=DEVICE)[:N]),
            forms=operation_forms(lambda x, i: frames.gather(x, i, None, DTYPE, torch.channels_last)),
            cost=Cost(flops=size, bytes=3 * size + 8 * N),
        )

    compare(f"frames gathered, {N} of {M}", form, subject)
