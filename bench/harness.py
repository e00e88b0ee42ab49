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
SLOW_S = 10e-3
"""Calls from here on do not feel that their code is cold"""

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
    row_tolerance: float = 0.1
    """the same of a single row, over the norm of a typical one; a row alone hardly moves the whole"""
    compared: Mapping[str, Form] | None = None
    """what to compare in the place of forms that draw at random"""
    absent: Mapping[str, str] = field(default_factory=dict)
    """forms that the operation does not have here, and why"""


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
    names = ["reference", *(name for name in subject.forms if name != "reference")]
    found.absent = {name: skipped[name] for name in names if name in skipped} | dict(subject.absent)
    calls = {name: _prepared(name, call) for name, call in subject.forms.items() if name not in found.absent}
    compared = {name: _prepared(name, call) for name, call in (subject.compared or {}).items()}

    def attempt(name: str, step: Callable[[], Any]) -> Any:
        """What a step of a form gives; a form that fails is reported as such, and the others go on."""
        try:
            return step()
        except Exception as error:
            found.wrong[name] = f"raised {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"

    inputs = subject.inputs()
    truth = attempt("reference", lambda: _results(compared.get("reference", calls["reference"]), inputs))
    for name in (name for name in names if name in calls and name not in found.wrong):
        if truth is None:
            found.wrong[name] = "there is no definition to hold it to"
            continue
        result = attempt(name, lambda name=name: _results(compared.get(name, calls[name]), inputs))
        fault = None if result is None else difference(truth, result, subject.tolerance, subject.row_tolerance)
        if fault is not None:
            found.wrong[name] = fault
    right = {name: call for name, call in calls.items() if name not in found.wrong}
    # All forms get the same sets, as many as the fastest needs: a cold first call then weighs the same in each.
    spare = subject.inputs()
    once_s = {name: attempt(name, lambda call=call: _once_s(call, spare)) for name, call in right.items()}
    fastest_s = min((s for s in once_s.values() if s), default=LEAST_S)
    sets = [subject.inputs() for _ in range(min(MOST_SETS, math.ceil(LEAST_S / fastest_s)))]
    warms = [spare] if fastest_s < SLOW_S else []
    turns = {
        name: attempt(name, lambda call=call: _turn(call, sets, warms))
        for name, call in right.items()
        if name not in found.wrong
    }
    found.seconds = interleave({name: turn for name, turn in turns.items() if turn is not None}, rounds)
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


def difference(truth: list[Tensor], result: list[Tensor], tolerance: float, row_tolerance: float) -> str | None:
    """What is wrong with a result, in whole or in a row of its first axis; None where nothing is. A NaN is wrong."""
    if [x.shape for x in truth] != [x.shape for x in result]:
        return f"shapes {[tuple(x.shape) for x in result]}, not {[tuple(x.shape) for x in truth]}"
    for i, (want, got) in enumerate(zip(truth, result, strict=True)):
        exact, off = want.double(), got.double() - want.double()
        error = float(off.norm() / exact.norm().clamp_min(1e-30))
        if not error <= tolerance:
            return f"result {i} is off by {error:.2g} of its norm; {tolerance:.2g} is allowed"
        if want.ndim > 1 and want.numel():
            typical = exact.norm() / len(exact) ** 0.5
            worst = float(off.flatten(1).norm(dim=1).max() / typical.clamp_min(1e-30))
            if not worst <= row_tolerance:
                return f"a row of result {i} is off by {worst:.2g} of a row's norm; {row_tolerance:.2g} is allowed"
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
    """What a call computes from its own copy of the inputs; on a GPU, as it is timed: by the replay of a graph."""
    own = tuple(_copy(x) for x in inputs)
    out = call(*own)
    if IS_GPU:

        def restore() -> None:  # what a call writes in place
            with torch.no_grad():
                for mine, x in zip(own, inputs, strict=True):
                    if isinstance(x, Tensor):
                        mine.copy_(x)

        graph, (out,) = _captured(call, [own])
        restore()
        graph.replay()
        wait()
    results = [out] if isinstance(out, Tensor) else list(out)
    return [x.detach().clone() for x in results]


def _copy(x: Any) -> Any:
    return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def _captured(call: Form, sets: list[tuple[Any, ...]]) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    """A graph of the call on each set, and what it will have computed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for inputs in sets:
            call(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = [call(*inputs) for inputs in sets]
    return graph, out


def _once_s(call: Form, inputs: tuple[Any, ...]) -> float:
    """Seconds of one call, once it is compiled and its workspaces are filled."""
    for _ in range(3):
        call(*inputs)
    wait()
    turn = _turn(call, [inputs], [])
    return min(turn() for _ in range(3))


def _turn(call: Form, sets: list[tuple[Any, ...]], warms: list[tuple[Any, ...]]) -> Turn:
    """Flush the cache, call it on `warms` for its code to be there, then timed on each set; seconds of one call."""
    return _replayed(call, sets, warms) if IS_GPU else _called(call, sets, warms)


def _called(call: Form, sets: list[tuple[Any, ...]], warms: list[tuple[Any, ...]]) -> Turn:
    def turn() -> float:
        _elsewhere().zero_()
        for inputs in warms:
            call(*inputs)
        start_s = time.perf_counter()
        for inputs in sets:
            call(*inputs)
        return (time.perf_counter() - start_s) / len(sets)

    return turn


def _replayed(call: Form, sets: list[tuple[Any, ...]], warms: list[tuple[Any, ...]]) -> Turn:
    graph, _ = _captured(call, sets)
    warming = _captured(call, warms)[0] if warms else None
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def turn() -> float:
        _elsewhere().zero_()
        if warming is not None:
            warming.replay()
        started.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        return started.elapsed_time(ended) / 1e3 / len(sets)

    return turn


@cache
def _elsewhere() -> Tensor:
    """Twice what the last cache holds."""
    return torch.empty(2 * cache_bytes(), dtype=torch.uint8, device=DEVICE)


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
