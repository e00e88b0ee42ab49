"""Measures one thing at growing sizes: the rungs of a ladder, side by side as the forms of an operation are.

All rungs are built first, each once the ones below say that it will not take too long, and stay; then they take turns,
so that a machine that drifts drifts for all, and the power with which time grows is not the drift's. A ladder ends
where its next rung is predicted to take longer than LONGEST_S a call, by the power of the last three, or where memory
does.
"""

import gc
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.instrument import footprint, machine, timer
from bench.instrument.harness import Rounds
from bench.instrument.ladders import slope
from bench.instrument.table import duration
from storm_fast.kernels.cost import Cost

LONGEST_S = 4.0
RUNG_S, LADDER_S = 0.5, 12.0
"""How long a rung is measured, if its calls are short, and all rungs of a ladder, if they are long."""
FEWEST, MOST = 2, 7  # rounds
SHORT_S, SAMPLES = 0.25, (7, 50)  # calls up to this long are timed so often: at least, at most


class Rung(NamedTuple):
    """One size of what is measured."""

    start: Callable[[], Callable[[], Any]]
    """builds it, and gives the call that is timed"""
    unit: str
    count: float
    """what a call does so much of"""
    cost: Callable[[], Cost | None] = lambda: None


def climb(
    ladder: str, axis: str, sizes: Iterable[int], rung: Callable[[int], Rung], is_quick: bool
) -> dict[int, Rounds]:
    """Measure every rung that is not too high.

    Args:
        ladder: its name.
        axis: what grows.
        sizes: the rungs' sizes.
        rung: makes one.
        is_quick: a third of the time for the whole.

    Returns:
        What was found of each size, as of an operation whose only form is `ours`.
    """
    found: dict[int, Rounds] = {}
    calls: dict[int, Callable[[], Any]] = {}
    once_s: dict[int, float] = {}
    again = full = False
    for size in sorted(sizes):
        one = rung(size)
        found[size] = Rounds("ours", unit=one.unit, count=one.count)
        long_s = predicted_s(once_s, size)
        if long_s > LONGEST_S and not (full or again):
            again, last = True, max(once_s)  # what ends a ladder is not to be one slow call
            once_s[last] = min(once_s[last], _seconds(calls[last]))
            long_s = predicted_s(once_s, size)
        if full:
            found[size].absent["ours"] = "a smaller one was out of memory"
        elif long_s > LONGEST_S:
            found[size].absent["ours"] = f"predicted {duration(long_s)} a call; {duration(LONGEST_S)} are the most"
        else:
            found[size].cost = one.cost()  # before memory is looked at: counting needs some too
            before_mb = footprint.before_mb()
            try:
                calls[size] = one.start()
                once_s[size] = _once_s(calls[size])
            except (torch.OutOfMemoryError, MemoryError):
                full = True
                found[size].absent["ours"] = "out of memory, beside the smaller ones"
            except Exception as error:
                found[size].fail("ours", error)
            where = {"ladder": ladder, "axis": axis, "size": size, "peak_mb": footprint.added_mb(before_mb)}
            found[size].beside["ours"] = where
    once_s = {size: s for size, s in once_s.items() if not (found[size].failed or found[size].absent)}
    for size, seconds in _in_turn(calls, once_s, LADDER_S / 3 if is_quick else LADDER_S).items():
        found[size].seconds["ours"] = seconds
    machine.sample()  # before clocks fall
    return found


def predicted_s(once_s: dict[int, float], size: int) -> float:
    """Seconds of a call by the last three sizes below it; of two, by both; of one, in proportion."""
    known = sorted(once_s.items())[-3:]
    if not known:
        return 0.0
    power = slope(*zip(*known, strict=True)) if len(known) > 1 else 1.0
    last, last_s = known[-1]
    return float(last_s * (size / last) ** power)


def _once_s(call: Callable[[], Any]) -> float:
    """Of a call, and of a second one where the first cannot be taken for it or costs little."""
    first_s = _seconds(call)
    return min(first_s, _seconds(call)) if timer.IS_GPU or first_s < 2 * SHORT_S else first_s


def _seconds(call: Callable[[], Any]) -> float:
    start_s = time.perf_counter()
    call()
    timer.wait()
    return time.perf_counter() - start_s


def _in_turn(calls: dict[int, Callable[[], Any]], once_s: dict[int, float], most_s: float) -> dict[int, list[float]]:
    """Seconds of each size: in every round each takes a turn, of several calls where these are short."""
    seconds: dict[int, list[float]] = {size: [] for size in once_s}
    if not once_s:
        return seconds
    rounds = max(FEWEST, min(MOST, int(most_s / sum(once_s.values()))))
    turns = {size: math.ceil(_samples(s) / rounds) for size, s in once_s.items()}
    random = np.random.default_rng(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for size in random.permutation(list(once_s)).tolist():
                seconds[size] += [_seconds(calls[size]) for _ in range(turns[size])]
    finally:
        gc.enable()
    return seconds


def _samples(s: float) -> int:
    least, most = SAMPLES
    return max(least, min(most, int(RUNG_S / s))) if s <= SHORT_S else math.ceil(2 * RUNG_S / s)
