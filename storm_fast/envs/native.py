"""Atari in C++ threads, equal to `GymCollector` in every field (csrc/ holds the games, the frames and the threads)."""

import importlib
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from storm_fast.config import EnvConfig
from storm_fast.envs.games import ale_seed, env_seed, rom_path
from storm_fast.envs.interface import SIZE, AnyCollector, Frames, Steps, check_kind, checked_actions, checked_out
from storm_fast.errors import InputError

if TYPE_CHECKING:
    from storm_fast.envs import _collector


def extension() -> ModuleType | None:
    """The compiled module, or None where it was not built."""
    try:
        return importlib.import_module("storm_fast.envs._collector")
    except ModuleNotFoundError:
        return None


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Collector(AnyCollector):
    """N games of ALE's own core, stepped by `num_threads` threads of which the calling one is one.

    With one thread the games step in `recv`; with more, the others begin at `send`. Results do not depend on the
    number of threads. It belongs to the process that made it: after a fork the child gets a RuntimeError.
    """

    def __init__(
        self, game: str, config: EnvConfig, *, size: tuple[int, int] = (SIZE, SIZE), gray: bool = False
    ) -> None:
        """Open config.num_envs games.

        Args:
            game: as in ALE/<game>-v5.
            config: the environment; `num_threads` 0 takes as many as there are cores and games.
            size: rows and columns of an observation, at most the screen's.
            gray: one channel of luminance, P = 1, instead of three colours.

        Raises:
            InputError: for a game that ALE does not know, or where the C++ extension was not built.
            ValueError: for a size beyond the screen's.
        """
        path = rom_path(game)
        module = extension()
        if module is None:
            raise InputError("want the C++ collector; storm_fast was installed without it: see the build's warning")
        N = config.num_envs
        self.num_envs, self.num_threads = N, min(N, config.num_threads or cores())
        self._games: _collector.Collector = module.Collector(
            rom=str(path),
            num_envs=N,
            num_threads=self.num_threads,
            sticky=config.sticky,
            full_action_space=config.full_action_space,
            frame_skip=config.frame_skip,
            frame_cap=config.frame_cap,
            noops=config.noops,
            rows=size[0],
            columns=size[1],
            gray=gray,
        )
        self.num_actions = self._games.num_actions
        self.name = f"Collector (C++, ALE {module.ale_version}, {self.num_threads} threads)"
        self._own_NYXP = np.zeros((N, *size, 1 if gray else 3), np.uint8)
        self.obs_NYXP = self._own_NYXP
        self.terminal_obs_NYXP = np.zeros_like(self._own_NYXP)
        self.restored_exactly = True

    def reset(self, seed: int, out: Frames | None = None) -> npt.NDArray[np.uint8]:
        """Seed and start every game, as gymnasium would; later episodes go on with the same random numbers."""
        return self.reset_seeds([env_seed(seed, i) for i in range(self.num_envs)], out)

    def reset_seeds(self, seeds: list[int], out: Frames | None = None) -> npt.NDArray[np.uint8]:
        """As `reset`, with a seed of gymnasium's kind for each environment."""
        target = self._target(out)
        self._games.reset([ale_seed(seed) for seed in seeds], target)
        self.obs_NYXP = target
        return target

    def send(self, action_N: npt.NDArray[np.int64], out: Frames | None = None) -> None:
        """Begin one step; see `AnyCollector.send`."""
        target = self._target(out)
        # The extension checks too, before any game steps; checking here costs 3 us and is left for what that refuses.
        if type(action_N) is not np.ndarray or action_N.dtype != np.int64:
            action_N = checked_actions(action_N, self.num_envs, self.num_actions)
        try:
            self._games.send(action_N, target, self.terminal_obs_NYXP)
        except ValueError:
            checked_actions(action_N, self.num_envs, self.num_actions)
            raise
        self.obs_NYXP = target

    def recv(self) -> Steps:
        """Help with the step under way and give its results; the GIL is released meanwhile."""
        reward_N, terminated_N, truncated_N, life_lost_N, return_N, length_N = self._games.recv()
        return Steps(
            self.obs_NYXP,
            reward_N,
            terminated_N,
            truncated_N,
            life_lost_N,
            return_N,
            length_N,
            self.terminal_obs_NYXP,
        )

    def state_dict(self) -> dict[str, Any]:
        """Emulators, their random numbers and the counts of the running episodes; not in the middle of a step."""
        return {
            "collector": type(self).__name__,
            "games": [np.frombuffer(bytearray(saved), np.uint8) for saved in self._games.save()],
            "obs": self.obs_NYXP.copy(),
            "terminal_obs": self.terminal_obs_NYXP.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was called.

        Raises:
            InputError: for the state of another kind of collector, or of another number of environments.
            ValueError: for the state of another game, or one that is damaged.
        """
        check_kind(state, self)
        if len(state["games"]) != self.num_envs:
            raise InputError(f"want the state of {self.num_envs} environments; got {len(state['games'])}")
        for name in ("obs", "terminal_obs"):
            shape, wanted = tuple(state[name].shape), self._own_NYXP.shape
            if shape != wanted:
                raise InputError(f"want {name} {list(wanted)} in the state; got {list(shape)}")
        self._games.restore([np.asarray(saved, np.uint8).tobytes() for saved in state["games"]])
        self.obs_NYXP = self._own_NYXP
        self.obs_NYXP[:], self.terminal_obs_NYXP[:] = state["obs"], state["terminal_obs"]

    def _target(self, out: Frames | None) -> npt.NDArray[np.uint8]:
        return self._own_NYXP if out is None else checked_out(out, self._own_NYXP.shape)
