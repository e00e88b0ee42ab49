"""What a device reaches: bytes a second in copying, operations a second in a large product, seconds a launch.

Measured, not quoted.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from bench.instrument import machine
from bench.instrument.forms import IS_GPU
from bench.instrument.timer import wait


class Ceilings(NamedTuple):
    """The roof of a roofline, and what one small operation costs however little it does."""

    bytes_per_s: float
    """read plus written, copying more than any cache holds"""
    bf16_flops_per_s: float
    full_flops_per_s: float
    """of float32 tensors: in tf32 on a GPU, in float32 on a CPU"""
    launch_s: float
    """of the host, for one operation on one element"""
    node_s: float
    """of the device, for such an operation within a CUDA graph; of the host where there are none"""


def _best_s(call: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        wait()
        started = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - started)
    return best


def _product_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1024
    # Random numbers: products of zeros draw less power and so run faster.
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        best_s = _best_s(lambda: a @ b, 10 if IS_GPU else 100)
        for _ in range(20 if IS_GPU else 0):  # so many that the device is at work when it is asked
            a @ b
        machine.sample()
        return 2 * size**3 / best_s
    finally:
        matmul.fp32_precision = before


def measure(device: torch.device) -> Ceilings:
    """The best of some rounds of each."""
    source = torch.randint(256, (2**30 if device.type == "cuda" else 2**27,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), 10)
    launch_s, node_s = _launch_s(device)
    return Ceilings(
        2 * source.numel() / copy_s,
        _product_flops_per_s(device, torch.bfloat16),
        _product_flops_per_s(device, torch.float32),
        launch_s,
        node_s,
    )


def _launch_s(device: torch.device) -> tuple[float, float]:
    """Of a small operation launched by the host, and of one in a graph."""
    count, x_1 = 1000, torch.zeros(1, device=device)

    def call() -> None:
        for _ in range(count):
            x_1.add_(1)

    eager_s = _best_s(call, 5) / count
    if not IS_GPU:
        return eager_s, eager_s
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return eager_s, _best_s(graph.replay, 5) / count
