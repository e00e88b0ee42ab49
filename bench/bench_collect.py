"""Steps per second of the collectors and their peers, each beside the others and beside emulation alone.

Every round runs all candidates in turn on the same random actions. The environment is STORM's: 64 x 64 colour, 4 frames
a step, the maximum of the last two, sticky 0.25. Ours is first held to the slow twin, bit by bit; the peers define
their environments a little differently, so that of them only the first observation's shape and dtype are checked.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from typing import Any, NamedTuple

import cv2
import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from bench.conftest import Show
from bench.instrument.forms import in_forms
from bench.instrument.harness import Rounds, interleave
from storm_fast.config import EnvConfig
from storm_fast.envs import Collector, action_count, extension
from storm_fast.envs.games import make, rom_name, rom_path
from storm_fast.envs.gym import GymCollector
from storm_fast.envs.native import cores

try:
    import envpool
except ImportError:
    envpool = None

Actions = npt.NDArray[np.int64]

STEPS = 256
"""environment steps a round, over all environments"""
SLOW = {"Sync": 4, "Async": 4}
"""these take so much fewer of them, so that neighbours stay near in time"""
STICKY, SKIP, SIZE = 0.25, 4, 64
CHECKED_STEPS = 32


class Candidate(NamedTuple):
    """A vectorised environment, started."""

    step_all: Callable[[Actions], Any]
    """through all actions [T, N]"""
    close: Callable[[], Any]
    first: Any = None
    """what it showed first, unless it shows nothing"""


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


def stepping(envs: Any, first: Any, step: Callable[[Any], Any], dtype: Any = np.int64) -> Candidate:
    """Step through all actions."""

    def step_all(actions_TN: Actions) -> None:
        for action_N in actions_TN.astype(dtype):
            step(action_N)

    return Candidate(step_all, getattr(envs, "close", lambda: None), first)


def native(game: str, N: int, threads: int) -> Candidate:
    """Ours."""
    ours = Collector(game, EnvConfig(num_envs=N, sticky=STICKY, num_threads=threads))
    return stepping(ours, ours.reset(0), ours.step)


def emulation(game: str, N: int, threads: int, stock: bool) -> Candidate:
    """Games of their own in as many threads, no pictures, no Python in between: in our emulator or ALE's."""
    module = extension()
    assert module is not None
    bare = module.Collector(
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
        stock=stock,
    )

    def emulate(actions_TN: Actions) -> None:
        bare.emulate(actions_TN.T.ravel().tolist(), len(actions_TN))

    return Candidate(emulate, lambda: None)


def ale(game: str, N: int, threads: int) -> Candidate:
    """ale_py's own."""
    envs = AtariVectorEnv(
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
    return stepping(envs, envs.reset(seed=0)[0], envs.step)


def pool(game: str, N: int, threads: int) -> Candidate:
    """envpool's."""
    envs = envpool.make_gymnasium(
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
    return stepping(envs, envs.reset()[0], envs.step, np.int32)


def gymnasium_sync(game: str, N: int, _: int) -> Candidate:
    """gymnasium's, one after another."""
    envs = SyncVectorEnv([wrapped(game)] * N)
    return stepping(envs, envs.reset(seed=0)[0], envs.step)


def gymnasium_async(game: str, N: int, _: int) -> Candidate:
    """gymnasium's, a process each."""
    envs = AsyncVectorEnv([wrapped(game)] * N, context="fork")
    return stepping(envs, envs.reset(seed=0)[0], envs.step)


START = {
    "ours": native,
    "emulation": partial(emulation, stock=False),
    "stock emulation": partial(emulation, stock=True),
    "AtariVectorEnv": ale,
    "envpool": pool,
    "Sync": gymnasium_sync,
    "Async": gymnasium_async,
}
FORMS = tuple(START)
FLOORS = ("emulation", "stock emulation")


@cache
def fault(game: str) -> str | None:
    """What of ours differs from the slow twin in some random steps of two games; None where nothing does."""
    config = EnvConfig(num_envs=2, sticky=STICKY)
    ours, twin = Collector(game, config), GymCollector(game, config)
    random = np.random.default_rng(0)
    if not np.array_equal(ours.reset(1), twin.reset(1)):
        return "the first observations differ from the slow twin's"
    for t in range(CHECKED_STEPS):
        action_N = random.integers(0, ours.num_actions, 2)
        mine, true = ours.step(action_N), twin.step(action_N)
        for name, x, y in zip(mine._fields, mine, true, strict=True):
            if not np.array_equal(x, y):
                return f"{name} differs from the slow twin's after {t + 1} steps"
    return None


def odd(first: Any, N: int) -> str | None:
    """What of a first observation is not N colour pictures, however its axes are ordered; None where nothing is."""
    if first is None:
        return None
    shape = tuple(size for size in first.shape[1:] if size > 1)  # without a stack of one
    if first.dtype != np.uint8 or len(first) != N or sorted(shape) != [3, SIZE, SIZE]:
        return f"it shows {first.dtype} {list(first.shape)}, not {N} pictures of {SIZE} x {SIZE} x 3"
    return None


def absent(N: int, threads: int) -> dict[str, str]:
    """What cannot be measured, and why."""
    why = {}
    if extension() is None:
        why |= dict.fromkeys(("ours", *FLOORS), "the C++ collector was not built")
    if envpool is None:
        why["envpool"] = "not installed"
    if threads != max(threads_of(N)):
        why |= dict.fromkeys(SLOW, "has no threads to set: measured beside as many as there are")
    elif N == 64:
        why |= dict.fromkeys(SLOW, "64 take half a minute to start")
    return why


def collected(game: str, N: int, threads: int, rounds: int) -> Rounds:
    """All candidates, measured."""
    found = Rounds("ours", absent=absent(N, threads), unit="environment steps", count=1.0)
    wrong = None if "ours" in found.absent else fault(game)
    if wrong is not None:
        found.wrong |= {"ours": wrong} | dict.fromkeys(FLOORS, "of games that are wrong")
    random = np.random.default_rng(0)
    actions_TN = random.integers(0, action_count(game, False), (STEPS // N, N))

    def turn(name: str, candidate: Candidate) -> Callable[[], float]:
        some_TN = actions_TN[: max(1, len(actions_TN) // SLOW.get(name, 1))]

        def run() -> float:
            start_s = time.perf_counter()
            candidate.step_all(some_TN)
            return (time.perf_counter() - start_s) / some_TN.size

        return run

    with ExitStack() as stack:
        started = {}
        for name in (name for name in FORMS if name not in found.absent | found.wrong):
            candidate = found.attempt(name, lambda name=name: START[name](game, N, threads))
            if candidate is None:
                continue
            stack.callback(candidate.close)
            strange = odd(candidate.first, N)
            if strange is None:
                started[name] = candidate
            else:
                found.wrong[name] = strange
        found.seconds = interleave({name: turn(name, c) for name, c in started.items()}, rounds)
    return found


def threads_of(N: int) -> list[int]:
    """As many as are of news: no game has two."""
    return sorted({min(threads, N) for threads in (1, 2, cores())})


def cases() -> Iterator[Any]:
    """Games, how many, and threads; every number of threads for Pong alone."""
    for game in ("Pong", "Breakout", "MsPacman"):
        for num_envs in (1, 8, 64):
            threads = threads_of(num_envs)
            for count in threads if game == "Pong" else threads[-1:]:
                is_quick = game == "Pong" and num_envs == 8 and count == 1
                yield pytest.param(game, num_envs, count, marks=[] if is_quick else pytest.mark.full)


@in_forms(*FORMS)
@pytest.mark.parametrize(("game", "num_envs", "threads"), list(cases()))
def bench_collect(
    show: Show, measured: dict[str, Rounds], quick: bool, game: str, num_envs: int, threads: int, form: str
) -> None:
    operation = f"collect {game}, games {num_envs}, threads {threads}"
    if operation not in measured:
        measured[operation] = collected(game, num_envs, threads, rounds=5 if quick else 9)
    show(operation, form, measured[operation])
