"""Benchmarks time on the device's clock: a call ends when the device has finished its work."""

import time
from typing import Any

import pytest
import torch


def device_timer() -> float:
    """Seconds on the host clock, read when the device has finished all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every benchmark that clock."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=device_timer, warmup=False))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The collectors' rates and ratios, which pytest-benchmark's own table has no columns for."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    rows = [b for b in getattr(session, "benchmarks", []) if "steps_per_s" in b.extra_info]
    for i, bench in enumerate(rows):
        rates, ratios = bench.extra_info["steps_per_s"], bench.extra_info["ours_over"]
        if i == 0:
            terminalreporter.section("collectors: environment steps per second, and ours / each")
        cells = [f"{name} {rate:,.0f} ({ratios[name]:.2f}x)" for name, rate in rates.items() if name != "ours"]
        terminalreporter.write_line(f"{bench.name:32s} ours {rates['ours']:,.0f} | " + " | ".join(cells))
        for name in bench.extra_info["absent"]:
            terminalreporter.write_line(f"{'':32s} absent: {name}")
