"""Frames for the encoder: the world model's batch, and the contexts of imagination straight from the replay."""

from collections.abc import Callable

import pytest
import torch

from bench.forms import DEVICE, FORMS
from storm_fast.kernels import frames
from storm_fast.kernels.cost import Cost

FRAME = (64, 64, 3)
DTYPE = torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
def bench_normalise(timed: Callable[..., None], form: str) -> None:
    obs_NYXP = torch.zeros(1024, *FRAME, dtype=torch.uint8, device=DEVICE)
    cost = Cost(flops=obs_NYXP.numel(), bytes=3 * obs_NYXP.numel())
    timed(form, lambda: frames.normalise(obs_NYXP, None, DTYPE, torch.channels_last), cost)


@pytest.mark.parametrize("form", FORMS)
def bench_gather(timed: Callable[..., None], form: str) -> None:
    frames_MYXP = torch.zeros(10_000, *FRAME, dtype=torch.uint8, device=DEVICE)
    index_N = torch.randint(10_000, (8192,), device=DEVICE)
    size = index_N.numel() * frames_MYXP[0].numel()
    cost = Cost(flops=size, bytes=3 * size + 8 * index_N.numel())
    timed(form, lambda: frames.gather(frames_MYXP, index_N, None, DTYPE, torch.channels_last), cost)
