"""The fallback where the C++ collector was not built: ale_py's own vector environment behind the same interface.

It departs from `GymCollector`, measured with ale-py 0.12.1: the terminal frame is that of the step before, a
truncation is hidden where a life is lost on that very step, and its seeds mean other games. Its emulators cannot be
saved: a resumed run plays new episodes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from storm_fast.config import EnvConfig
from storm_fast.envs.games import action_count, ale_seed, env_seed, rom_name
from storm_fast.envs.interface import SIZE, AnyCollector, Frames, Steps, check_kind, checked_actions, checked_out
from storm_fast.errors import InputError


class AleVectorCollector(AnyCollector):
    """N games in ale_py's threads; it counts returns and lengths, and tells lost lives from ends."""

    def __init__(self, game: str, config: EnvConfig) -> None:
        """Open config.num_envs games. Raises InputError for a game that ALE does not know."""
        N = config.num_envs
        self.num_envs, self._seed = N, 0
        self._env = AtariVectorEnv(
            rom_name(game),
            N,
            num_threads=config.num_threads,
            max_num_frames_per_episode=config.frame_cap,
            repeat_action_probability=config.sticky,
            full_action_space=config.full_action_space,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=SIZE,
            img_width=SIZE,
            grayscale=False,
            stack_num=1,
            frameskip=config.frame_skip,
            noop_max=config.noops,
            reward_clipping=False,
            use_fire_reset=False,
        )
        self.num_actions = action_count(game, config.full_action_space)
        self.name = "AleVectorCollector (ale_py's vector environment; it departs in details and cannot be saved)"
        self._own_NYXP = np.zeros((N, SIZE, SIZE, 3), np.uint8)
        self.obs_NYXP = self._own_NYXP
        self.terminal_obs_NYXP = np.zeros_like(self._own_NYXP)
        self.lives_N = np.zeros(N, np.int64)
        self.return_N, self.length_N = np.zeros(N, np.float64), np.zeros(N, np.int64)
        self._waiting = False
        self.restored_exactly = True

    def reset(self, seed: int, out: Frames | None = None) -> npt.NDArray[np.uint8]:
        """Seed and start every game."""
        if self._waiting:
            self.recv()
        self._seed = seed
        self.obs_NYXP = self._target(out)
        # 31 bits: the environment takes signed seeds, and a negative one as none.
        seeds_N = np.array([ale_seed(env_seed(seed, i)) >> 1 for i in range(self.num_envs)], np.int64)
        obs_NTYXP, info = self._env.reset(seed=seeds_N)
        self.obs_NYXP[:] = obs_NTYXP[:, -1]
        self.lives_N[:] = info["lives"]
        self.return_N[:], self.length_N[:] = 0, 0
        return self.obs_NYXP

    def send(self, action_N: npt.NDArray[np.int64], out: Frames | None = None) -> None:
        """Begin one step; see `AnyCollector.send`."""
        if self._waiting:
            raise ValueError("want recv() after send(); got a second send()")
        checked = checked_actions(action_N, self.num_envs, self.num_actions)
        self.obs_NYXP = self._target(out)
        self._env.send(checked)
        self._waiting = True

    def recv(self) -> Steps:
        """Wait for the step that `send` began."""
        if not self._waiting:
            raise ValueError("want send() before recv(); got recv() alone")
        self._waiting = False
        obs_NTYXP, reward_N, terminated_N, truncated_N, info = self._env.recv()
        self.obs_NYXP[:] = obs_NTYXP[:, -1]
        ended_N = terminated_N | truncated_N
        lives_N = np.asarray(info["lives"])
        life_lost_N = np.where(ended_N, terminated_N & (self.lives_N > 0), lives_N < self.lives_N)
        self.return_N += reward_N
        self.length_N += 1
        return_N, length_N = self.return_N.copy(), self.length_N.copy()
        if ended_N.any():
            self.terminal_obs_NYXP[ended_N] = info["final_obs"][ended_N, -1]
        self.return_N[ended_N], self.length_N[ended_N] = 0, 0
        self.lives_N[:] = lives_N
        return Steps(
            self.obs_NYXP,
            np.asarray(reward_N, np.float32),
            np.asarray(terminated_N, np.bool_),
            np.asarray(truncated_N, np.bool_),
            life_lost_N,
            return_N,
            length_N,
            self.terminal_obs_NYXP,
        )

    def state_dict(self) -> dict[str, Any]:
        """The number of environments and a seed for new episodes: the emulators cannot be saved."""
        return {"collector": type(self).__name__, "num_envs": self.num_envs, "seed": self._seed + 2**31}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start new episodes, of other seeds than before; never exact."""
        check_kind(state, self)
        if state["num_envs"] != self.num_envs:
            raise InputError(f"want the state of {self.num_envs} environments; got {state['num_envs']}")
        self.reset(int(state["seed"]))
        self.restored_exactly = False

    def _target(self, out: Frames | None) -> npt.NDArray[np.uint8]:
        return self._own_NYXP if out is None else checked_out(out, self._own_NYXP.shape)
