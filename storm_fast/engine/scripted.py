"""Blind policies for games in which they earn reward: they record demonstrations and give the probe its rollout."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storm_fast.config import EnvConfig
from storm_fast.data.demonstration import KINDS, Arrays
from storm_fast.engine.turn import Turn, first_frames
from storm_fast.envs import Steps, check_game, open_collector
from storm_fast.envs.games import make
from storm_fast.errors import InputError


@dataclass(frozen=True)
class Script:
    """A blind policy: one action with a given probability, otherwise NOOP."""

    action: str  # by ALE's name

    def act(self, actions: list[str], probability: float, generator: np.random.Generator) -> int:
        """An index into the game's action set."""
        return actions.index(self.action if generator.random() < probability else "NOOP")


SCRIPTS = {"Freeway": Script("UP")}
"""Games for which a scripted policy is known to earn reward."""

DEMONSTRATION_PROBABILITY = 0.8  # of the scripted action while a demonstration is recorded


class Recorder:
    """A script that plays one environment; keeps a row of each step, in the order of `KINDS`."""

    def __init__(self, script: Callable[[npt.NDArray[np.uint8]], int]) -> None:
        self._script = script
        self.rows: list[tuple[Any, ...]] = []

    def act(self, obs_NYXP: Tensor) -> npt.NDArray[np.int64]:
        """The script's action on a copy of the frame."""
        self._obs = obs_NYXP[0].numpy().copy()
        self._action = self._script(self._obs)
        return np.array([self._action])

    def note(self, steps: Steps) -> None:
        """Keep the step."""
        ends = bool(steps.terminated_N[0]), bool(steps.life_lost_N[0])
        self.rows.append((self._obs, self._action, steps.reward_N[0], *ends))


def play(
    game: str,
    env: EnvConfig,
    seed: int,
    act: Callable[[npt.NDArray[np.uint8]], int],
    max_steps: int | None = None,
) -> Arrays:
    """One episode of one environment under `act(obs) -> action`, in the file's format."""
    collector = open_collector(game, replace(env, num_envs=1, num_threads=1))
    recorder = Recorder(act)
    turn = Turn(collector, recorder, first_frames(collector, seed, torch.device("cpu")))
    while max_steps is None or len(recorder.rows) < max_steps:
        if turn.play().over_N[0]:
            break
    columns = [np.stack(column) for column in zip(*recorder.rows, strict=True)]
    return dict(zip(KINDS, columns, strict=True))


def record(
    game: str, env: EnvConfig, seed: int, probability: float = DEMONSTRATION_PROBABILITY, episodes: int = 1
) -> Arrays:
    """Episodes of the game's scripted policy, one after the other.

    Raises:
        InputError: for a game without one.
    """
    check_game(game)
    if game not in SCRIPTS:
        raise InputError(
            f"want a game with a scripted policy ({', '.join(SCRIPTS)}); got {game}; "
            f"use --demonstration none, or --demonstration FILE.npz"
        )
    actions = make(game, env).get_action_meanings()
    generator = np.random.default_rng((seed, 0xDE30))

    def act(_: npt.NDArray[np.uint8]) -> int:
        return SCRIPTS[game].act(actions, probability, generator)

    # Seeds far from those of training, and from each other's.
    played = [play(game, env, seed + 10_000 + 100_000 * i, act) for i in range(episodes)]
    return {name: np.concatenate([episode[name] for episode in played]) for name in KINDS}
