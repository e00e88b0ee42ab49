"""Times the forms of an operation side by side: on the same inputs, in turn, and with no figure for a wrong result.

What is one operation in several forms is a `Subject`: a definition, a compiled definition, a kernel, a peer. Each form
is first held to the definition; one that fails has no times, only what is wrong with it. A round then runs every form
once, in an order that changes, so that a machine that drifts drifts for all, and a ratio is the median of the rounds'
own. A call works on several sets of inputs in turn, and before each round more is written than the last cache holds:
in training too, other tensors have passed through it.

On a GPU a form is timed as training runs it, replayed from a CUDA graph, between two events on the device: a host's
clock around one call would time launches. Short calls are repeated within the graph, each on inputs of its own. Not
yet run on a GPU.
"""

import gc
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.forms import DEVICE, IS_GPU
from storm_fast.kernels import backend
from storm_fast.kernels.cost import Cost

LEAST_S = 200e-6
"""A round runs a form at least about this long: an event or a clock resolves 1 us."""
MOST_SETS = 32

Form = Callable[..., Any]
Turn = Callable[[], float]
"""One turn of a form: seconds of one call."""


@dataclass(frozen=True)
class Subject:
    """One operation at one shape, and everything that computes it."""

    inputs: Callable[[], tuple[Any, ...]]
    """a fresh, random set of arguments"""
    forms: Mapping[str, Form]
    """what computes it, each from such a set, to a tensor or a tuple of them; `reference` defines it"""
    cost: Cost
    tolerance: float = 1e-2
    """largest |result - reference| / |reference|, in 2-norms: results are rounded to bf16 once or twice"""
    compared: Mapping[str, Form] | None = None
    """what to compare in the place of forms that draw at random"""


@dataclass
class Rounds:
    """What was measured of an operation."""

    ours: str
    """the form that training runs here; ratios are over it"""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """of one call in each round, by form; rounds correspond"""
    wrong: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    unit: str = ""
    """what a call does `count` of, where that is its measure"""
    count: float = 0.0
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    """further figures, by form"""

    def over_ours(self, form: str) -> list[float]:
        """In each round, what this form took over what ours took: above 1, ours is the faster."""
        return [theirs / ours for theirs, ours in zip(self.seconds[form], self.seconds[self.ours], strict=True)]


def operation_forms(call: Form, **peers: Form) -> dict[str, Form]:
    """One of our operations in all its forms, and its peers."""
    return {"reference": call, "triton": call, "compiled": call} | peers


def measure(subject: Subject, rounds: int, skipped: Mapping[str, str]) -> Rounds:
    """Check every form, then time those that are right.

    Args:
        subject: what to measure.
        rounds: how often each form is timed.
        skipped: forms that cannot or are not to run here, and why.
    """
    found = Rounds("triton" if IS_GPU else "reference", cost=subject.cost)
    turns: dict[str, Turn] = {}
    compared = subject.compared or subject.forms
    truth = None
    for name in ("reference", *(name for name in subject.forms if name != "reference")):
        if name in skipped:
            found.absent[name] = skipped[name]
            continue
        try:
            if truth is None:
                inputs = subject.inputs()
                truth = _results(_prepared("reference", compared["reference"]), inputs)
            fault = difference(truth, _results(_prepared(name, compared[name]), inputs), subject.tolerance)
            if fault is None:
                turns[name] = _turn(_prepared(name, subject.forms[name]), subject.inputs)
        except Exception as error:  # a form that fails is reported as such, and the others go on
            fault = f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if fault is not None:
            found.wrong[name] = fault
    found.seconds = interleave(turns, rounds)
    return found


def interleave(turns: Mapping[str, Turn], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Every form's seconds, round by round: all take a turn in each, in random order; garbage is not collected."""
    random = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    gc.collect()
    gc.disable()
    try:
        for turn in range(warmup + rounds):
            for name in random.permutation(sorted(turns)).tolist():  # none always follows the same one
                s = turns[name]()
                if turn >= warmup:
                    seconds[name].append(s)
    finally:
        gc.enable()
    return seconds


def difference(truth: list[Tensor], result: list[Tensor], tolerance: float) -> str | None:
    """What is wrong with a result; None where nothing is. A NaN is wrong always."""
    if [x.shape for x in truth] != [x.shape for x in result]:
        return f"shapes {[tuple(x.shape) for x in result]}, not {[tuple(x.shape) for x in truth]}"
    for i, (want, got) in enumerate(zip(truth, result, strict=True)):
        exact, other = want.double(), got.double()
        error = float((other - exact).norm() / exact.norm().clamp_min(1e-30))
        if not error <= tolerance:
            return f"result {i} is off by {error:.2g} of its norm; {tolerance:.2g} is allowed"
    return None


def _prepared(name: str, call: Form) -> Form:
    """The call under the backend that its form's name stands for."""
    chosen: backend.Backend = "triton" if name == "triton" else "reference"
    if name == "compiled":
        call = torch.compile(call, dynamic=False)

    def run(*inputs: Any) -> Any:
        with backend.using(chosen):
            return call(*inputs)

    return run


def _results(call: Form, inputs: tuple[Any, ...]) -> list[Tensor]:
    """What a call computes from its own copy of the inputs."""
    out = call(*(_copy(x) for x in inputs))
    results = [out] if isinstance(out, Tensor) else list(out)
    return [x.detach().clone() for x in results]


def _copy(x: Any) -> Any:
    return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def _turn(call: Form, inputs: Callable[[], tuple[Any, ...]]) -> Turn:
    """A turn of the form: flush the cache, call it on each set of inputs, divide."""
    first = inputs()
    for _ in range(3):  # compiles, and fills workspaces
        call(*first)
    wait()
    start_s = time.perf_counter()
    call(*first)
    wait()
    once_s = time.perf_counter() - start_s
    sets = [first, *(inputs() for _ in range(min(MOST_SETS, math.ceil(LEAST_S / once_s)) - 1))]
    return _replayed(call, sets) if IS_GPU else _called(call, sets)


def _called(call: Form, sets: list[tuple[Any, ...]]) -> Turn:
    def turn() -> float:
        _elsewhere().zero_()
        start_s = time.perf_counter()
        for inputs in sets:
            call(*inputs)
        return (time.perf_counter() - start_s) / len(sets)

    return turn


@cache
def _elsewhere() -> Tensor:
    """Twice what the last cache holds."""
    return torch.empty(2 * cache_bytes(), dtype=torch.uint8, device=DEVICE)


def _replayed(call: Form, sets: list[tuple[Any, ...]]) -> Turn:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for inputs in sets:
            call(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in sets:
            call(*inputs)
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def turn() -> float:
        _elsewhere().zero_()
        started.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        return started.elapsed_time(ended) / 1e3 / len(sets)

    return turn


def wait() -> None:
    """Until the device has finished all queued work."""
    if IS_GPU:
        torch.cuda.synchronize()


def cache_bytes() -> int:
    """Of the last cache before the device's memory; 64 MiB where the system does not tell."""
    if IS_GPU:
        return int(torch.cuda.get_device_properties().L2_cache_size)
    try:
        size = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError):  # the name is Linux's
        size = 0
    return size if size > 0 else 2**26


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """First quartile, median, third."""
    q1, q2, q3 = np.quantile(list(values), (0.25, 0.5, 0.75))
    return float(q1), float(q2), float(q3)
