"""Training on a CPU beside other programs: a phase with the machine to itself, and while each core has a busy program.

A phase shares its cores then, so twice as long is what is fair. Threads that wait for each other by spinning take a
hundred times as long: whoever they wait for waits for them.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch

from bench.conftest import Show
from bench.instrument.forms import IS_GPU
from bench.instrument.harness import Rounds, interleave
from bench.instrument.ours import Ours
from bench.instrument.timer import Turn
from storm_fast.config import preset
from storm_fast.engine.precision import choose
from storm_fast.envs.native import cores
from storm_fast.kernels import backend

FORMS = ("alone", "busy")
LEAST_S = 0.3
"""A turn runs at least so long: neighbours take a core for some milliseconds at a time."""
SETTLE_S = 0.3
"""for the neighbours to start, and to be gone"""
ABSENT = "a phase on a GPU does not compete for cores" if IS_GPU else None


@pytest.fixture(scope="session")
def beside() -> dict[str, Rounds]:
    """What was measured of each case, in both forms."""
    return {}


@contextmanager
def _neighbours() -> Iterator[None]:
    """A program on each core that does nothing but keep it busy."""
    command = [sys.executable, "-S", "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(cores())]
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()
        time.sleep(SETTLE_S)


def _measure(name: str, phase: str, rounds: int) -> Rounds:
    config = preset(name)
    ours = Ours(replace(config, loop=replace(config.loop, capacity=2000)), choose("cpu", "auto"))

    with backend.using(ours.backend):
        for call in ours.calls.values():  # the agent's update needs a rollout
            call()

    def turn(is_busy: bool) -> Turn:
        def run() -> float:
            with _neighbours() if is_busy else nullcontext(), backend.using(ours.backend):
                count, start_s = 0, time.perf_counter()
                while count == 0 or time.perf_counter() - start_s < LEAST_S:
                    ours.calls[phase]()
                    count += 1
                return (time.perf_counter() - start_s) / count

        return run

    return Rounds("alone", interleave({form: turn(form == "busy") for form in FORMS}, rounds, warmup=1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("tiny", "act"),
        pytest.param("tiny", "model", marks=pytest.mark.full),
        pytest.param("tiny", "imagine", marks=pytest.mark.full),
        pytest.param("tiny", "agent", marks=pytest.mark.full),
        pytest.param("storm", "act", marks=pytest.mark.full),
    ],
)
def bench_beside_busy_programs(
    show: Show, beside: dict[str, Rounds], quick: bool, name: str, phase: str, form: str
) -> None:
    operation = f"beside busy programs: {phase} of {name}"
    if operation not in beside:
        threads = torch.get_num_threads()
        try:
            beside[operation] = (
                Rounds("alone", absent=dict.fromkeys(FORMS, ABSENT))
                if ABSENT
                else _measure(name, phase, 3 if quick else 7)
            )
        finally:
            torch.set_num_threads(threads)  # which the configuration chose
    show(operation, form, beside[operation])
