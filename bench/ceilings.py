"""What a device reaches: bytes a second in copying, operations a second in a large product. Measured, not quoted."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Ceilings(NamedTuple):
    """The roof of a roofline."""

    bytes_per_s: float  # read plus written
    flops_per_s: float  # in products of the dtype asked for


def _best_s(call: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of some rounds of each."""
    is_gpu = device.type == "cuda"
    source = torch.zeros(2**30 if is_gpu else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), 10)
    size = 8192 if is_gpu else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    product_s = _best_s(lambda: a @ a, 10)
    return Ceilings(2 * source.numel() / copy_s, 2 * size**3 / product_s)
