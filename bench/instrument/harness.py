"""Times the forms of an operation side by side: on the same inputs, in turn, and with no figure for a wrong result.

What is one operation in several forms is a `Subject`: a definition, a compiled definition, a kernel, a peer. Each form
is first held to the definition (correct.py); one that differs, or fails, has no times, only what is wrong with it. A
round then runs every form once (timer.py), in an order that changes, so that a machine that drifts drifts for all, and
a ratio is the median of the rounds' own. A call works on several sets of inputs in turn, and before each round more is
written than the last cache holds: in training too, other tensors have passed through it. Short calls are repeated, on
a GPU within one graph, each on inputs of its own.
"""

import gc
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench.instrument import machine, timer
from bench.instrument.correct import difference, results
from bench.instrument.forms import IS_GPU
from bench.instrument.timer import Form, Turn
from storm_fast.kernels import backend
from storm_fast.kernels.cost import Cost

LEAST_S = 200e-6
"""A round runs a form at least about this long: an event or a clock resolves 1 us."""
MOST_SETS = 32
SLOW_S = 10e-3
"""Calls from here on do not feel that their code is cold"""


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
    ours: str = "triton" if IS_GPU else "reference"
    """the form that training runs here"""


@dataclass
class Rounds:
    """What was measured of an operation."""

    ours: str
    """the form that training runs here; ratios are over it"""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """of one call in each round, by form; rounds correspond, and a form with fewer took the first ones"""
    wrong: dict[str, str] = field(default_factory=dict)
    """forms that compute something else, and what"""
    failed: dict[str, str] = field(default_factory=dict)
    """forms that were to run and could not: an error, want of memory, no compiler"""
    absent: dict[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    unit: str = ""
    """what a call does `count` of, where that is its measure"""
    count: float = 0.0
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    """further figures, by form"""

    def over_ours(self, form: str) -> list[float]:
        """In each round, what this form took over what ours took: above 1, ours is the faster."""
        return [theirs / ours for theirs, ours in zip(self.seconds[form], self.seconds[self.ours], strict=False)]

    def attempt(self, form: str, step: Callable[[], Any]) -> Any:
        """What a step of a form gives; None where it raises, which is noted, and the others go on."""
        try:
            return step()
        except Exception as error:
            self.fail(form, error)
            return None

    def fail(self, form: str, error: Exception) -> None:
        """Note what kept a form from running."""
        self.failed[form] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


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
    found = Rounds(subject.ours, cost=subject.cost)
    names = ["reference", *(name for name in subject.forms if name != "reference")]
    found.absent = {name: skipped[name] for name in names if name in skipped} | dict(subject.absent)
    calls = {name: _prepared(name, call) for name, call in subject.forms.items() if name not in found.absent}
    compared = {name: _prepared(name, call) for name, call in (subject.compared or {}).items()}
    inputs = subject.inputs()
    truth = found.attempt("reference", lambda: results(compared.get("reference", calls["reference"]), inputs))
    for name in (name for name in names if name in calls and name not in found.failed):
        if truth is None:
            found.failed[name] = "there is no definition to hold it to"
            continue
        result = found.attempt(name, lambda name=name: results(compared.get(name, calls[name]), inputs))
        fault = None if result is None else difference(truth, result, subject.tolerance, subject.row_tolerance)
        if fault is not None:
            found.wrong[name] = fault
    right = {name: call for name, call in calls.items() if name not in found.wrong | found.failed}
    # All forms get the same sets, as many as the fastest needs: a cold first call then weighs the same in each.
    spare = subject.inputs()
    once_s = {name: found.attempt(name, lambda call=call: timer.once_s(call, spare)) for name, call in right.items()}
    fastest_s = min((s for s in once_s.values() if s), default=LEAST_S)
    sets = [subject.inputs() for _ in range(min(MOST_SETS, math.ceil(LEAST_S / fastest_s)))]
    warms = [spare] if fastest_s < SLOW_S else []
    turns = {
        name: found.attempt(name, lambda call=call: timer.turn(call, sets, warms))
        for name, call in right.items()
        if name not in found.failed
    }
    found.seconds = interleave({name: turn for name, turn in turns.items() if turn is not None}, rounds)
    machine.sample()  # before clocks fall
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


def _prepared(name: str, call: Form) -> Form:
    """The call under the backend that its form's name stands for."""
    chosen: backend.Backend = "triton" if name == "triton" else "reference"
    if name == "compiled":
        call = torch.compile(call, dynamic=False)

    def run(*inputs: Any) -> Any:
        with backend.using(chosen):
            return call(*inputs)

    return run


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """First quartile, median, third."""
    q1, q2, q3 = np.quantile(list(values), (0.25, 0.5, 0.75))
    return float(q1), float(q2), float(q3)
