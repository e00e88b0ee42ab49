"""What happens as work grows: time and memory of what training does, over sizes around those of preset `storm`.

Each case is a rung of a ladder (climb.py), `bench_<what>[<size>]`; those that are selected of a ladder are measured
together, when the first of them runs. The report fits a power to each ladder: 1 is work in proportion. Memory is what
a rung adds at its peak, networks and replay included.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bench.conftest import Show
from bench.instrument.climb import Rung, climb
from bench.instrument.forms import DEVICE, IS_GPU
from bench.instrument.harness import Rounds
from bench.instrument.ours import SPEC, Ours
from bench.instrument.work import phase_costs
from storm_fast.config import Config, EnvConfig, preset
from storm_fast.data.replay import Replay
from storm_fast.engine.precision import choose
from storm_fast.envs import Collector, extension
from storm_fast.envs.native import cores
from storm_fast.kernels import backend

Ladder = Callable[..., None]

WARM_TURNS = 64
"""of every game before it is measured, however many there are: the first moments of a game are not like the rest"""


@pytest.fixture(scope="session")
def climbed() -> dict[str, dict[int, Rounds]]:
    """All ladders so far, by name."""
    return {}


@pytest.fixture
def ladder(show: Show, climbed: dict[str, dict[int, Rounds]], quick: bool, request: pytest.FixtureRequest) -> Ladder:
    """Measures a ladder when the first of its rungs asks, and shows this rung."""
    own = request.node.callspec.params

    def run(what: str, axis: str, rung: Callable[[int], Rung], absent: str | None = None) -> None:
        name = f"scaling: {what} over {axis}"
        if absent is not None:
            climbed[name] = {own["size"]: Rounds("ours", absent={"ours": absent})}
        elif name not in climbed:
            siblings = [i.callspec.params for i in request.session.items if i.function is request.node.function]
            sizes = [params["size"] for params in siblings if params | {"size": 0} == own | {"size": 0}]
            climbed[name] = climb(name, axis, sizes, rung, quick)
        show(f"{name}: {own['size']:,}", "ours", climbed[name][own["size"]])

    return run


def sizes(*every: int, quick: tuple[int, ...]) -> Any:
    """The rungs, of which --quick climbs some."""
    rungs = [pytest.param(x, marks=[] if x in quick else pytest.mark.full) for x in every]
    return pytest.mark.parametrize("size", rungs)


def phase(config: Config, name: str, unit: str, count: float) -> Rung:
    """One phase of training under this configuration; imagination is followed by nothing, and needs nothing before."""

    def start() -> Callable[[], Any]:
        ours = Ours(replace(config, compile=True), choose("auto", "auto"))

        def run() -> None:
            with backend.using(ours.backend):
                ours.calls[name]()

        return run

    return Rung(start, unit, count, lambda: phase_costs(config)[name])


STORM = replace(preset("storm"), loop=replace(preset("storm").loop, capacity=2000))


@sizes(64, 128, 256, 512, 1024, 2048, 4096, 8192, quick=(64, 128))
def bench_imagination_over_batch(ladder: Ladder, size: int) -> None:
    def rung(batch: int) -> Rung:
        imagine = replace(STORM.imagine, imagine_batch=batch)
        return phase(replace(STORM, imagine=imagine), "imagine", "imagined steps", batch * imagine.horizon)

    ladder("imagination", "batch", rung)


@sizes(8, 16, 32, 64, quick=(8, 16))
def bench_imagination_over_horizon(ladder: Ladder, size: int) -> None:
    batch = 1024 if IS_GPU else 128

    def rung(horizon: int) -> Rung:
        imagine = replace(STORM.imagine, imagine_batch=batch, horizon=horizon)
        config = replace(STORM, model=replace(STORM.model, max_positions=128), imagine=imagine)
        return phase(config, "imagine", "imagined steps", batch * horizon)

    ladder(f"imagination of {batch}", "horizon", rung)


@sizes(2, 4, 8, 16, 32, 64, 128, quick=(2, 4))
def bench_model_over_batch(ladder: Ladder, size: int) -> None:
    def rung(batch: int) -> Rung:
        config = replace(STORM, model=replace(STORM.model, batch=batch))
        return phase(config, "model", "steps learned", batch * config.model.length)

    ladder("world-model update", "batch", rung)


@sizes(8, 32, 128, quick=(8, 32))
def bench_model_over_length(ladder: Ladder, size: int) -> None:
    batch = 16 if IS_GPU else 8

    def rung(length: int) -> Rung:
        config = replace(STORM, model=replace(STORM.model, batch=batch, length=length, max_positions=128))
        return phase(config, "model", "steps learned", batch * length)

    ladder(f"world-model update of {batch}", "length", rung)


def games(num_envs: int, threads: int) -> Rung:
    """256 steps of Pong in all."""
    turns = max(1, 256 // num_envs)

    def start() -> Callable[[], Any]:
        games = Collector("Pong", EnvConfig(num_envs=num_envs, num_threads=threads))
        games.reset(0)
        action_TN = np.random.default_rng(0).integers(0, games.num_actions, (turns, num_envs))
        for turn in range(WARM_TURNS):
            games.step(action_TN[turn % turns])

        def run() -> None:
            for action_N in action_TN:
                games.step(action_N)

        return run

    return Rung(start, "environment steps", turns * num_envs)


NOT_BUILT = "the C++ collector was not built" if extension() is None else None


@sizes(1, 4, 16, 64, quick=(1, 4))
@pytest.mark.parametrize("threads", sorted({1, cores()}))
def bench_collector_over_games(ladder: Ladder, size: int, threads: int) -> None:
    ladder(f"256 steps of Pong on {threads} threads", "games", lambda num_envs: games(num_envs, threads), NOT_BUILT)


@sizes(*sorted({2**i for i in range(7) if 2**i < cores()} | {min(64, cores())}), quick=(1, 2))
def bench_collector_over_threads(ladder: Ladder, size: int) -> None:
    ladder("256 steps of Pong in 64 games", "threads", lambda threads: games(64, threads), NOT_BUILT)


@sizes(1000, 10_000, 100_000, quick=(1000, 10_000))
def bench_replay_over_size(ladder: Ladder, size: int) -> None:
    B, T = STORM.imagine.imagine_batch, STORM.imagine.context

    def rung(steps: int) -> Rung:
        def start() -> Callable[[], Any]:
            replay = Replay(steps, 1, SPEC.frame, DEVICE)
            frames = torch.randint(256, (1000, 1, *SPEC.frame), dtype=torch.uint8, device=DEVICE)
            nothing = torch.zeros(1, device=DEVICE)
            for i in range(steps):
                replay.append(frames[i % len(frames)], nothing, nothing, nothing)
            generator = torch.Generator(DEVICE).manual_seed(0)
            return lambda: replay.sample(B, T, generator)

        return Rung(start, "steps drawn", B * T)

    ladder(f"a sample of {B} x {T} from the replay", "steps held", rung)
