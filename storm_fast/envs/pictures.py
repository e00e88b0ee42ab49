"""Any gymnasium environment that can be seen and has Discrete actions, vectorised by gymnasium.

Its observations are seen where they are pictures, and else what it renders; both are shrunk to 64 x 64 by area.
"""

import os
import signal
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import AddRenderObservation

from storm_fast.config import EnvConfig
from storm_fast.envs import area
from storm_fast.envs.games import env_seed
from storm_fast.envs.interface import SIZE, AnyCollector, Frames, Steps, check_kind, checked_actions, checked_out
from storm_fast.envs.spec import EnvSpec
from storm_fast.errors import InputError

Env = gymnasium.Env[Any, Any]
T = TypeVar("T")


class Shrunk(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Pictures of 64 x 64 in 1 or 3 colours."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        shape = env.observation_space.shape
        assert shape is not None
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, shape[2] if len(shape) == 3 else 1), np.uint8)

    def observation(self, observation: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The picture, shrunk by averaging areas."""
        if observation.dtype != np.uint8:  # which AddRenderObservation declares, whatever is rendered
            raise InputError(f"want an --env that shows or renders uint8 pictures; got {observation.dtype}")
        picture_YXP = observation if observation.ndim == 3 else observation[..., None]
        return area.resize(picture_YXP, SIZE, SIZE)


def describe(name: str) -> EnvSpec:
    """The environment of that gymnasium ID, or `module:ID`, which imports the module first.

    Raises:
        InputError: where it cannot be made or reset, shows no picture, or has other actions than Discrete ones.
    """
    env = _make(name)
    try:
        if not isinstance(env.action_space, spaces.Discrete):
            raise InputError(f"want an --env with Discrete actions; {name} has {env.action_space}")
        _of(name, lambda: env.reset(seed=0))
        assert env.observation_space.shape is not None
        return EnvSpec(
            name,
            int(env.action_space.n),
            open=partial(PictureCollector, name),
            frame=(SIZE, SIZE, env.observation_space.shape[2]),
        )
    finally:
        env.close()


def _make(name: str) -> Env:
    """One environment whose observations are pictures of 64 x 64."""
    # SDL, by which many environments draw, would otherwise take over the signals that end a run.
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")
    env = _of(name, lambda: gymnasium.make(name))
    seen = _of(name, lambda: env.observation_space)
    if _is_picture(seen):
        return Shrunk(env)
    modes = env.metadata.get("render_modes") or []
    env.close()
    wanted = f"an --env whose observations are uint8 pictures of at least {SIZE} x {SIZE} in 1 or 3 colours"
    if "rgb_array" not in modes:
        raise InputError(f"want {wanted}, or that renders them (rgb_array); {name} has {seen} and renders {modes}")
    drawn = _of(name, lambda: AddRenderObservation(gymnasium.make(name, render_mode="rgb_array"), render_only=True))
    if not _is_picture(drawn.observation_space):
        rendered = drawn.observation_space
        drawn.close()
        raise InputError(f"want {wanted}; {name} has {seen} and renders {rendered}")
    return Shrunk(drawn)


def _of(name: str, step: Callable[[], T]) -> T:
    """What a step of making the environment gives: it is others' code, and says by any exception what it lacks."""
    try:
        return step()
    except InputError:
        raise
    except Exception as error:
        wanted = "--env as gymnasium knows it, `ID` or `module:ID`"
        raise InputError(f"want {wanted}; {name}: {type(error).__name__}: {error}") from error


def _is_picture(space: spaces.Space[Any]) -> bool:
    """Whether what is observed is a picture that area interpolation can shrink."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        return False
    return min(space.shape[:2]) >= SIZE and (len(space.shape) == 2 or space.shape[2] in (1, 3))


class _Apart:
    """Makes an environment in another process, where Ctrl-C, which a terminal sends to all, is left to the trainer."""

    def __init__(self, name: str, trainer: int) -> None:
        self._name, self._trainer = name, trainer

    def __call__(self) -> Env:
        if os.getpid() != self._trainer:  # gymnasium also makes one in the trainer's own, to look
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _make(self._name)


class PictureCollector(AnyCollector):
    """N environments, one after the other in the calling thread, or in processes where `num_threads` is above 1.

    They cannot be saved: a resumed run begins new episodes. An episode ends where the environment says so, be it
    terminated or truncated; there are no lives.
    """

    def __init__(self, name: str, config: EnvConfig) -> None:
        """Open config.num_envs of them. Raises InputError as `describe` does."""
        N = config.num_envs
        self.num_envs, self._seed, self._steps = N, 0, 0
        self._apart: AsyncVectorEnv | None = None
        if config.num_threads > 1:
            makes = [_Apart(name, os.getpid())] * N
            # spawn: a process forked while torch's threads run may wait for ever for what one of them held.
            self._apart = AsyncVectorEnv(makes, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP)
            weakref.finalize(self, self._apart.close)  # or the processes are killed at the end, and complain
        self._env = self._apart or SyncVectorEnv([partial(_make, name)] * N, autoreset_mode=AutoresetMode.SAME_STEP)
        space = self._env.single_action_space
        assert isinstance(space, spaces.Discrete)
        self.num_actions, self._start = int(space.n), int(space.start)
        where = f"{N} processes" if self._apart else "one thread"
        self.name = f"gymnasium's vector environment, {where} (it cannot be saved)"
        self._own_NYXP = np.zeros(self._env.observation_space.shape or (), np.uint8)
        self.obs_NYXP = self._own_NYXP
        self.terminal_obs_NYXP = np.zeros_like(self._own_NYXP)
        self.return_N, self.length_N = np.zeros(N, np.float64), np.zeros(N, np.int64)
        self._action_N: npt.NDArray[np.int64] | None = None
        self.restored_exactly = True

    def reset(self, seed: int, out: Frames | None = None) -> npt.NDArray[np.uint8]:
        """Seed and start every environment."""
        self._seed, self._steps = seed, 0
        return self._begin(seed, out)

    def _begin(self, seed: int, out: Frames | None = None) -> npt.NDArray[np.uint8]:
        if self._action_N is not None:
            self.recv()
        self.obs_NYXP = self._target(out)
        # 31 bits: some environments hand the seed to a library that takes signed ones.
        self.obs_NYXP[:], _ = self._env.reset(seed=[env_seed(seed, i) >> 1 for i in range(self.num_envs)])
        self.return_N[:], self.length_N[:] = 0, 0
        return self.obs_NYXP

    def send(self, action_N: npt.NDArray[np.int64], out: Frames | None = None) -> None:
        """Begin one step; see `AnyCollector.send`. In one thread the environments step in `recv`."""
        if self._action_N is not None:
            raise ValueError("want recv() after send(); got a second send()")
        checked = checked_actions(action_N, self.num_envs, self.num_actions) + self._start
        self.obs_NYXP = self._target(out)
        self._action_N = checked
        if self._apart is not None:
            self._apart.step_async(checked)

    def recv(self) -> Steps:
        """Wait for the step that `send` began."""
        if self._action_N is None:
            raise ValueError("want send() before recv(); got recv() alone")
        action_N, self._action_N = self._action_N, None
        took = self._env.step(action_N) if self._apart is None else self._apart.step_wait()
        obs_NYXP, reward_N, terminated_N, truncated_N, info = took
        self.obs_NYXP[:] = obs_NYXP
        self.return_N += reward_N
        self.length_N += 1
        self._steps += 1
        return_N, length_N = self.return_N.copy(), self.length_N.copy()
        over_N = terminated_N | truncated_N
        for i in np.flatnonzero(over_N):
            self.terminal_obs_NYXP[i] = info["final_obs"][i]
        self.return_N[over_N], self.length_N[over_N] = 0, 0
        return Steps(
            self.obs_NYXP,
            np.asarray(reward_N, np.float32),
            np.asarray(terminated_N, np.bool_),
            np.asarray(truncated_N, np.bool_),
            np.zeros(self.num_envs, np.bool_),
            return_N,
            length_N,
            self.terminal_obs_NYXP,
        )

    def state_dict(self) -> dict[str, Any]:
        """The seed and the steps since, from which a seed for new episodes follows."""
        known = {"num_envs": self.num_envs, "seed": self._seed, "steps": self._steps}
        return {"collector": type(self).__name__} | known

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start new episodes, of other seeds than before; never exact."""
        check_kind(state, self)
        if state["num_envs"] != self.num_envs:
            raise InputError(f"want the state of {self.num_envs} environments; got {state['num_envs']}")
        self._seed, self._steps = int(state["seed"]), int(state["steps"])
        self._begin(env_seed(self._seed, self.num_envs + self._steps))
        self.restored_exactly = False

    def _target(self, out: Frames | None) -> npt.NDArray[np.uint8]:
        return self._own_NYXP if out is None else checked_out(out, self._own_NYXP.shape)
