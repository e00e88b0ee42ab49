"""Benchmarks time on the device's clock: a call ends when the device has finished its work."""

import time

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
