"""The C++ collector as a `gymnasium.vector.VectorEnv`, for other trainers: importing this module registers it.

import gymnasium, storm_fast.envs.vector_env
envs = gymnasium.make_vec("storm_fast/Atari-v0", num_envs=8, game="Pong")
"""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from storm_fast.config import EnvConfig
from storm_fast.envs.interface import SIZE
from storm_fast.envs.native import Collector

Frames = npt.NDArray[np.uint8]
Info = dict[str, Any]


class AtariVectorEnv(VectorEnv[Frames, npt.NDArray[np.int64], npt.NDArray[np.bool_]]):
    """N games; one that ends is reset within the step, its last frame and its totals in the step's `info`.

    `info` holds "life_lost" [N] and, where a game ended, "final_obs" [N, Y, X, P] and "final_info" with
    "episode_return" and "episode_length" [N], each with its mask as gymnasium names it. Observations are copies.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        game: str,
        sticky: float = 0.25,
        full_action_space: bool = False,
        frame_skip: int = 4,
        frame_cap: int = 108_000,
        noops: int = 0,
        num_threads: int = 0,
        size: tuple[int, int] = (SIZE, SIZE),
        gray: bool = False,
    ) -> None:
        """Open the games; the arguments are those of `EnvConfig` and `Collector`, and raise what they raise."""
        config = EnvConfig(
            num_envs=num_envs,
            sticky=sticky,
            full_action_space=full_action_space,
            frame_skip=frame_skip,
            frame_cap=frame_cap,
            noops=noops,
            num_threads=num_threads,
        )
        self.collector = Collector(game, config, size=size, gray=gray)
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        shape = (*size, 1 if gray else 3)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(self.collector.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, Info]:
        """Start every game; an integer seeds environment i with seed + i, as gymnasium's own vector environments do.

        Raises:
            ValueError: for any options, since there are none, or for another number of seeds.
        """
        if options:
            raise ValueError(f"want no options; got {sorted(options)}")
        N = self.num_envs
        seeds: list[int | None]
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
            seeds = [*range(int(seed), int(seed) + N)]
        else:
            super().reset()
            seeds = [None] * N if seed is None else list(seed)
        if len(seeds) != N:
            raise ValueError(f"want {N} seeds; got {len(seeds)}")
        fresh = self.np_random.integers(2**32, size=N)  # so that a seeded series of resets repeats
        given = [int(fresh[i]) if s is None else s for i, s in enumerate(seeds)]
        obs_NYXP = self._open().reset_seeds(given).copy()
        return obs_NYXP, {"life_lost": np.zeros(N, np.bool_)}

    def step(  # type: ignore[override]  # gymnasium types rewards as it types flags
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Frames, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], Info]:
        """One step of every game.

        Raises:
            ValueError: for an invalid action, before any game steps.
            ClosedEnvironmentError: after `close`, as `reset` does.
        """
        steps = self._open().step(actions)
        ended_N = steps.terminated_N | steps.truncated_N
        info: Info = {"life_lost": steps.life_lost_N}
        if ended_N.any():
            final = {"episode_return": steps.episode_return_N, "episode_length": steps.episode_length_N}
            masked = {name: np.where(ended_N, values_N, 0) for name, values_N in final.items()}
            masks = {f"_{name}": ended_N.copy() for name in final}
            frames_N = np.full(self.num_envs, None, dtype=object)  # as gymnasium's own vector environments give them
            for i in np.flatnonzero(ended_N):
                frames_N[i] = steps.terminal_obs_NYXP[i].copy()
            info |= {"final_obs": frames_N, "_final_obs": ended_N, "final_info": masked | masks, "_final_info": ended_N}
        reward_N = steps.reward_N.astype(np.float64)
        return steps.obs_NYXP.copy(), reward_N, steps.terminated_N, steps.truncated_N, info

    def close_extras(self, **kwargs: Any) -> None:
        """End the games and their threads."""
        del self.collector

    def _open(self) -> Collector:
        if self.closed:
            raise ClosedEnvironmentError("want an open environment; this one was closed")
        return self.collector


gymnasium.register(
    id="storm_fast/Atari-v0",
    vector_entry_point="storm_fast.envs.vector_env:AtariVectorEnv",
)
