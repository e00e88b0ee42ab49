"""Steps per second of the collectors and their peers, each beside the others and beside emulation alone.

`pytest bench/bench_collect.py --benchmark-only` prints a table. Every round runs all candidates in turn on the same
random actions, so that a machine that drifts drifts for all. Rates are medians over the rounds, and a ratio is the
median of each round's own, since a shared machine changes more from round to round than between neighbours. What is
not installed is listed as absent. The environment is STORM's: 64 x 64 colour, 4 frames a step, the maximum of the last
two, sticky 0.25.
"""

import time
from collections.abc import Callable
from typing import Any

import cv2
import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from pytest_benchmark.fixture import BenchmarkFixture

from storm_fast.collect import Collector, action_count, extension
from storm_fast.collect.games import make, rom_name, rom_path
from storm_fast.collect.native import cores
from storm_fast.config import EnvConfig

try:
    import envpool
except ImportError:
    envpool = None

Actions = npt.NDArray[np.int64]
Run = Callable[[Actions], Any]

ROUNDS = 21
STEPS = 256  # environment steps a round, over all environments
SLOW = {"Sync": 4, "Async": 4}  # these take so much fewer of them, so that neighbours stay near in time
STICKY, SKIP, SIZE = 0.25, 4, 64
THREADS = sorted({1, 2, cores()})


class StormWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """STORM's environment as gymnasium users write it: a wrapper of ale_py's, in Python."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Repeat, take the maximum, shrink."""
        frames, total = [], 0.0
        for _ in range(SKIP):
            frame, reward, terminated, truncated, info = self.env.step(action)
            frames.append(frame)
            total += float(reward)
            if terminated or truncated:
                break
        return shrunk(np.maximum.reduce(frames[-2:])), total, terminated, truncated, info

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """The first frame, shrunk."""
        frame, info = self.env.reset(**options)
        return shrunk(frame), info


def shrunk(frame_YXP: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Area interpolation by OpenCV, the fastest that Python has."""
    return np.asarray(cv2.resize(frame_YXP, (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.uint8)


def wrapped(game: str) -> Callable[[], gymnasium.Env[Any, Any]]:
    """A maker of one such environment."""

    def one() -> gymnasium.Env[Any, Any]:
        env = StormWrapper(make(game, EnvConfig(sticky=STICKY)))
        env.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        return env

    return one


def stepper(step: Callable[[Any], Any], dtype: Any = np.int64) -> Run:
    """Step through all actions."""

    def run(actions_TN: Actions) -> None:
        for action_N in actions_TN.astype(dtype):
            step(action_N)

    return run


def candidates(game: str, N: int, threads: int) -> dict[str, Run]:
    """All that can step N games with that many threads, ready to run."""
    ours = Collector(game, EnvConfig(num_envs=N, sticky=STICKY, num_threads=threads))
    ours.reset(0)
    module = extension()
    assert module is not None
    floor = module.Collector(
        rom=str(rom_path(game)),
        num_envs=N,
        num_threads=threads,
        sticky=STICKY,
        full_action_space=False,
        frame_skip=SKIP,
        frame_cap=108_000,
        rows=SIZE,
        columns=SIZE,
        gray=False,
    )
    floor.reset(list(range(N)), np.zeros((N, SIZE, SIZE, 3), np.uint8))
    runs: dict[str, Run] = {
        "ours": stepper(ours.step),
        "floor": lambda actions_TN: floor.emulate(actions_TN.T.ravel().tolist(), len(actions_TN)),
    }
    ale = AtariVectorEnv(
        rom_name(game),
        N,
        num_threads=threads,
        repeat_action_probability=STICKY,
        img_height=SIZE,
        img_width=SIZE,
        grayscale=False,
        stack_num=1,
        frameskip=SKIP,
        noop_max=0,
        reward_clipping=False,
        use_fire_reset=False,
    )
    ale.reset(seed=0)
    runs["AtariVectorEnv"] = stepper(ale.step)
    if envpool is not None:
        pool = envpool.make_gymnasium(
            f"{game}-v5",
            num_envs=N,
            num_threads=threads,
            img_height=SIZE,
            img_width=SIZE,
            gray_scale=False,
            stack_num=1,
            frame_skip=SKIP,
            noop_max=1,
            use_fire_reset=False,
            use_inter_area_resize=True,
            repeat_action_probability=STICKY,
        )
        pool.reset()
        runs["envpool"] = stepper(pool.step, np.int32)
    if threads == max(THREADS):  # these two have no threads to set
        sync = SyncVectorEnv([wrapped(game)] * N)
        sync.reset(seed=0)
        runs["Sync"] = stepper(sync.step)
        parallel = AsyncVectorEnv([wrapped(game)] * N, context="fork")
        parallel.reset(seed=0)
        runs["Async"] = stepper(parallel.step)
    return runs


@pytest.mark.skipif(extension() is None, reason="the C++ collector was not built")
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("num_envs", [1, 8, 64])
@pytest.mark.parametrize("game", ["Pong", "Breakout", "MsPacman"])
@pytest.mark.filterwarnings("ignore")  # the peers' own
def bench_collect(benchmark: BenchmarkFixture, game: str, num_envs: int, threads: int) -> None:
    runs = candidates(game, num_envs, threads)
    ours = runs.pop("ours")
    random = np.random.default_rng(0)
    num_actions = action_count(game, False)
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def others_first() -> tuple[tuple[Actions], dict[str, Any]]:
        actions_TN = random.integers(0, num_actions, (STEPS // num_envs, num_envs))
        names = sorted(runs, key=lambda _: random.random())  # no candidate always follows the same one
        for name, run in ((name, runs[name]) for name in names):
            some_TN = actions_TN[: len(actions_TN) // SLOW.get(name, 1)]
            start = time.perf_counter()
            run(some_TN)
            seconds[name].append((time.perf_counter() - start) * len(actions_TN) / len(some_TN))
        return (actions_TN,), {}

    benchmark.group = f"collect {game}"
    benchmark.pedantic(ours, setup=others_first, rounds=ROUNDS, warmup_rounds=1)
    assert benchmark.stats is not None
    mine = np.array(benchmark.stats.stats.data)
    steps = STEPS // num_envs * num_envs
    times = {"ours": mine} | {name: np.array(all_rounds[1:]) for name, all_rounds in seconds.items()}
    benchmark.extra_info |= {
        "steps_per_s": {name: steps / float(np.median(s)) for name, s in times.items()},
        "ours_over": {name: float(np.median(s / mine)) for name, s in times.items() if name != "ours"},
        "absent": [] if envpool is not None else ["envpool"],
    }
