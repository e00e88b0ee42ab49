"""The clock: what one call takes on a CPU, and what the replay of its graph takes on a GPU, caches flushed before.

On a GPU a call is timed as training runs it, replayed from a CUDA graph, between two events on the device: a host's
clock around one call would time launches.
"""

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bench.instrument.forms import DEVICE, IS_GPU

Form = Callable[..., Any]
Turn = Callable[[], float]
"""One turn of a form: seconds of one call."""
Sets = list[tuple[Any, ...]]
"""Arguments of a call, several times."""

_AHEAD_CYCLES = 2_000_000  # of the device, about 1 ms: as long as it is busy, the host launches what is timed


def once_s(call: Form, inputs: tuple[Any, ...]) -> float:
    """Seconds of one call, once it is compiled and its workspaces are filled."""
    for _ in range(3):
        call(*inputs)
    wait()
    taken = turn(call, [inputs], [])
    return min(taken() for _ in range(3))


def turn(call: Form, sets: Sets, warms: Sets) -> Turn:
    """Flush the cache, call it on `warms` for its code to be there, then timed on each set; seconds of one call."""
    return _replayed(call, sets, warms) if IS_GPU else _called(call, sets, warms)


def _called(call: Form, sets: Sets, warms: Sets) -> Turn:
    def taken() -> float:
        _elsewhere(DEVICE).zero_()
        for inputs in warms:
            call(*inputs)
        start_s = time.perf_counter()
        for inputs in sets:
            call(*inputs)
        return (time.perf_counter() - start_s) / len(sets)

    return taken


def _replayed(call: Form, sets: Sets, warms: Sets) -> Turn:
    graph = captured(call, sets)[0]
    warming = captured(call, warms)[0] if warms else None
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def taken() -> float:
        _elsewhere(DEVICE).zero_()
        if warming is not None:
            warming.replay()
        torch.cuda._sleep(_AHEAD_CYCLES)
        started.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        return started.elapsed_time(ended) / 1e3 / len(sets)

    return taken


def captured(call: Form, sets: Sets) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    """A graph of the call on each set, and what it will have computed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for inputs in sets:
            call(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            out = [call(*inputs) for inputs in sets]
    except Exception:
        # A capture that fails leaves its stream the current one, which the outer block mends, and torch's generator
        # in the belief that it is captured, so that every later draw would raise: the end of a capture takes that back.
        spare = torch.empty(1, device="cuda")
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            spare.zero_()
        raise
    return graph, out


@cache
def _elsewhere(device: torch.device) -> Tensor:
    """Twice what the last cache holds."""
    return torch.empty(2 * _cache_bytes(device), dtype=torch.uint8, device=device)


def wait() -> None:
    """Until the device has finished all queued work."""
    if IS_GPU:
        torch.cuda.synchronize()


def _cache_bytes(device: torch.device) -> int:
    """Of the last cache before the device's memory; 64 MiB where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        size = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError):  # the name is Linux's
        size = 0
    return size if size > 0 else 2**26
