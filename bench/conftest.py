"""Benchmarks time on the device's clock: a call ends when the device has finished its work.

An operation on a GPU is timed as training runs it, replayed from a CUDA graph, between two events on the device: a
host's clock around one call would time the launches of eager PyTorch and Triton's Python. The L2 cache is flushed
before each replay, since in training other tensors have passed through it. Not yet run on a GPU.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from bench.ceilings import Ceilings, measure
from bench.forms import DEVICE
from storm_fast.kernels import backend
from storm_fast.kernels.cost import Cost


class _Clock:
    """What benchmarks read: a host's clock, or the device's own where an operation is replayed."""

    def __init__(self) -> None:
        self.replayed_s = 0.0
        self.is_device = False

    def read(self) -> float:
        """Seconds; on the host's clock, when the device has finished all queued work."""
        if self.is_device:
            return self.replayed_s
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


_CLOCK = _Clock()


def device_timer() -> float:
    """Seconds on the clock that holds."""
    return _CLOCK.read()


@contextmanager
def replaying(call: Callable[[], Any]) -> Iterator[Callable[[], None]]:
    """Capture a call; in the block the clock advances by what its replays take on the device, and by nothing else."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and fills workspaces, before the capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    elsewhere = torch.empty(4 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.uint8, device=DEVICE)

    def replay() -> None:
        elsewhere.zero_()
        started.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        _CLOCK.replayed_s += started.elapsed_time(ended) / 1e3

    _CLOCK.is_device = True
    try:
        yield replay
    finally:
        _CLOCK.is_device = False


@contextmanager
def playing_back(seconds: list[float]) -> Iterator[Callable[[], None]]:
    """In the block the clock advances with each call by what a round took when it was measured."""
    rounds = iter(seconds)

    def play() -> None:
        _CLOCK.replayed_s += next(rounds)

    _CLOCK.is_device = True
    try:
        yield play
    finally:
        _CLOCK.is_device = False


@pytest.fixture(scope="session")
def ceilings() -> Ceilings:
    """What this device reaches in copying and in products."""
    return measure(DEVICE, torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)


@pytest.fixture
def timed(benchmark: Any, ceilings: Ceilings) -> Callable[..., None]:
    """Times a call in one of its forms and states it as rates and as a share of what the device reaches."""

    def run(form: str, call: Callable[[], Any], cost: Cost) -> None:
        with backend.using("triton" if form == "triton" else "reference"):
            if form == "compiled":
                call = torch.compile(call, mode="default")
            if DEVICE.type == "cuda":
                with replaying(call) as replay:
                    benchmark.pedantic(replay, rounds=50, warmup_rounds=5)
            else:
                benchmark.pedantic(call, rounds=10, warmup_rounds=5)
        s = benchmark.stats.stats.median
        roof_s = max(cost.flops / ceilings.flops_per_s, cost.bytes / ceilings.bytes_per_s)
        benchmark.extra_info |= {
            "GB/s": cost.bytes / s / 1e9,
            "TFLOP/s": cost.flops / s / 1e12,
            "share of roof": roof_s / s,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name()
            if DEVICE.type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads",
        }

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every benchmark that clock."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=device_timer, warmup=False))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what pytest-benchmark's own table has no columns for."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    benchmarks = getattr(session, "benchmarks", [])
    _kernel_rates(terminalreporter, [b for b in benchmarks if "GB/s" in b.extra_info])
    _collector_rates(terminalreporter, [b for b in benchmarks if "steps_per_s" in b.extra_info])
    _step_forms(terminalreporter, [b for b in benchmarks if "over_this" in b.extra_info])


def _kernel_rates(terminalreporter: Any, rows: list[Any]) -> None:
    """Bytes and flops a second, and on a CPU what they are not."""
    for b in rows:
        x = b.extra_info
        terminalreporter.write_line(
            f"{b.name:44s}{b.stats.median * 1e6:11.1f} us (IQR {b.stats.iqr * 1e6:9.1f}){x['GB/s']:9.2f} GB/s"
            f"{x['TFLOP/s']:9.4f} TFLOP/s{100 * x['share of roof']:6.1f} % of roof"
        )
    if rows and DEVICE.type == "cpu":
        terminalreporter.write_line("On a CPU these are the PyTorch references; the Triton kernels run on a GPU alone.")


def _collector_rates(terminalreporter: Any, rows: list[Any]) -> None:
    """Environment steps a second of each collector, and ours over each."""
    if rows:
        terminalreporter.section("collectors: environment steps per second, and ours / each")
    for b in rows:
        rates, ratios = b.extra_info["steps_per_s"], b.extra_info["ours_over"]
        cells = [f"{name} {rate:,.0f} ({ratios[name]:.2f}x)" for name, rate in rates.items() if name != "ours"]
        terminalreporter.write_line(f"{b.name:32s} ours {rates['ours']:,.0f} | " + " | ".join(cells))
        for name in b.extra_info["absent"]:
            terminalreporter.write_line(f"{'':32s} absent: {name}")


def _step_forms(terminalreporter: Any, rows: list[Any]) -> None:
    """Milliseconds of each phase in each form, and the other forms over it."""
    if rows:
        terminalreporter.section("a training step: milliseconds, share of the floor, and each form / this one")
    for b in rows:
        x = b.extra_info
        ratios = " ".join(f"{name} {ratio:.2f}x" for name, ratio in x["over_this"].items())
        terminalreporter.write_line(
            f"{b.name:32s}{1e3 * b.stats.median:12.2f} ms (IQR {1e3 * b.stats.iqr:9.2f})"
            f"{100 * x['share_of_floor']:6.1f} % of {x['tflop']:.4f} TFLOP | {ratios}"
        )
        if "joules" in x:
            terminalreporter.write_line(f"{'':32s}phases apart {x['phases_apart_ms']:.2f} ms, {x['joules']:.2f} J")
