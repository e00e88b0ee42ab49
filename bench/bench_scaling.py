"""What happens as work grows: time and memory of what training does, over sizes around those of preset `storm`.

Each case is a rung of a ladder, `bench_<what>[<axis>-<size>]`. A ladder ends where its next rung would take longer than
LONGEST_S a call; those above are listed as absent. The report fits an exponent to each: 1 is work in proportion.
Memory is what a rung adds at its peak, networks and replay included.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from bench import footprint
from bench.conftest import Show
from bench.forms import DEVICE, IS_GPU
from bench.harness import Rounds
from bench.ours import Ours
from bench.timer import wait
from storm_fast.collect import Collector, extension
from storm_fast.collect.native import cores
from storm_fast.config import Config, EnvConfig, preset
from storm_fast.kernels import backend
from storm_fast.precision import choose
from storm_fast.replay import Replay
from storm_fast.world_model import FRAME

LONGEST_S = 4.0
ROUNDS = 8 if IS_GPU else 2


class Rung(NamedTuple):
    """Where a ladder stands."""

    size: int
    seconds: float


class Ladder:
    """The rungs of every ladder so far."""

    def __init__(self, show: Show, reached: dict[str, Rung], quick: bool) -> None:
        self._show, self._reached, self._quick = show, reached, quick

    def climb(
        self, what: str, axis: str, size: int, call: Callable[[], Callable[[], Any]], unit: str = "", count: float = 0.0
    ) -> None:
        """Measure one rung, unless it would take too long by what the one below took."""
        found = Rounds("ours", unit=unit, count=count)
        ladder = f"scaling: {what} over {axis}"
        last = self._reached.get(ladder)
        if what.endswith("threads") and extension() is None:
            found.absent["ours"] = "the C++ collector was not built"
        elif last is not None and last.seconds * size / last.size > LONGEST_S:
            found.absent["ours"] = f"would take more than {LONGEST_S:.0f} s a call"
        else:
            before_mb = footprint.before_mb()
            run = call()
            run()
            wait()
            for _ in range(2 if self._quick else ROUNDS):
                start_s = time.perf_counter()
                run()
                wait()
                found.seconds.setdefault("ours", []).append(time.perf_counter() - start_s)
            found.beside["ours"] = {
                "ladder": ladder,
                "axis": axis,
                "size": size,
                "peak_mb": footprint.added_mb(before_mb),
            }
            self._reached[ladder] = Rung(size, float(np.median(found.seconds["ours"])))
        self._show(f"{ladder}: {size:,}", "ours", found)


@pytest.fixture(scope="session")
def reached() -> dict[str, Rung]:
    """The highest rung measured of each ladder."""
    return {}


@pytest.fixture
def ladder(show: Show, reached: dict[str, Rung], quick: bool) -> Ladder:
    """For one rung."""
    return Ladder(show, reached, quick)


def sizes(*every: int, quick: tuple[int, ...]) -> list[Any]:
    """The rungs, of which --quick climbs some."""
    return [pytest.param(x, marks=[] if x in quick else pytest.mark.full) for x in every]


def phase(config: Config, name: str) -> Callable[[], Callable[[], Any]]:
    """One phase of training under this configuration; imagination is followed by nothing, and needs nothing before."""

    def start() -> Callable[[], Any]:
        ours = Ours(replace(config, compile=True), choose("auto", "auto"))

        def run() -> None:
            with backend.using(ours.backend):
                ours.calls[name]()

        return run

    return start


STORM = replace(preset("storm"), loop=replace(preset("storm").loop, capacity=2000))


@pytest.mark.parametrize("batch", sizes(64, 256, 1024, 4096, 8192, quick=(64,)))
def bench_imagination_over_batch(ladder: Ladder, batch: int) -> None:
    imagine = replace(STORM.imagine, imagine_batch=batch)
    config = replace(STORM, imagine=imagine)
    ladder.climb("imagination", "batch", batch, phase(config, "imagine"), "imagined steps", batch * imagine.horizon)


@pytest.mark.parametrize("horizon", sizes(8, 16, 32, 64, quick=(8,)))
def bench_imagination_over_horizon(ladder: Ladder, horizon: int) -> None:
    batch = 1024 if IS_GPU else 128
    imagine = replace(STORM.imagine, imagine_batch=batch, horizon=horizon)
    config = replace(STORM, model=replace(STORM.model, max_positions=128), imagine=imagine)
    what = f"imagination of {batch}"
    ladder.climb(what, "horizon", horizon, phase(config, "imagine"), "imagined steps", batch * horizon)


@pytest.mark.parametrize("batch", sizes(2, 4, 8, 16, 64, 128, quick=(2,)))
def bench_model_over_batch(ladder: Ladder, batch: int) -> None:
    config = replace(STORM, model=replace(STORM.model, batch=batch))
    steps = batch * STORM.model.length
    ladder.climb("world-model update", "batch", batch, phase(config, "model"), "steps learned", steps)


@pytest.mark.parametrize("length", sizes(8, 32, 128, quick=(8,)))
def bench_model_over_length(ladder: Ladder, length: int) -> None:
    batch = 16 if IS_GPU else 8
    config = replace(STORM, model=replace(STORM.model, batch=batch, length=length, max_positions=128))
    what = f"world-model update of {batch}"
    ladder.climb(what, "length", length, phase(config, "model"), "steps learned", batch * length)


@pytest.mark.parametrize("num_envs", sizes(1, 4, 16, 64, quick=(1, 4)))
@pytest.mark.parametrize("threads", sorted({1, cores()}))
def bench_collector_over_games(ladder: Ladder, num_envs: int, threads: int) -> None:
    turns = max(1, 256 // num_envs)

    def start() -> Callable[[], Any]:
        games = Collector("Pong", EnvConfig(num_envs=num_envs, num_threads=threads))
        games.reset(0)
        action_TN = np.random.default_rng(0).integers(0, games.num_actions, (turns, num_envs))

        def run() -> None:
            for action_N in action_TN:
                games.step(action_N)

        return run

    what = f"{turns * num_envs} steps of Pong on {threads} threads"
    ladder.climb(what, "games", num_envs, start, "environment steps", turns * num_envs)


@pytest.mark.parametrize("steps", sizes(1000, 10_000, 100_000, quick=(1000, 10_000)))
def bench_replay_over_size(ladder: Ladder, steps: int) -> None:
    B, T = STORM.imagine.imagine_batch, STORM.imagine.context

    def start() -> Callable[[], Any]:
        replay = Replay(steps, 1, FRAME, DEVICE)
        frames = torch.randint(256, (1000, 1, *FRAME), dtype=torch.uint8, device=DEVICE)
        nothing = torch.zeros(1, device=DEVICE)
        for i in range(steps):
            replay.append(frames[i % len(frames)], nothing, nothing, nothing)
        generator = torch.Generator(DEVICE).manual_seed(0)
        return lambda: replay.sample(B, T, generator)

    ladder.climb(f"a sample of {B} x {T} from the replay", "steps held", steps, start, "steps drawn", B * T)
