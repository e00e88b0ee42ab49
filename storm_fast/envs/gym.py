"""The slow twin: Atari on gymnasium and ale-py alone. It is the definition of the environment.

The action repeated for 4 frames, the channel-wise maximum of the last two, area interpolation to 64 x 64, no
gray scale, stacking, fire reset or reward clipping (STORM sec. 4.1, Table 10); no-ops at the start where asked for.
"""

from typing import Any, NamedTuple

import ale_py
import numpy as np
import numpy.typing as npt

from storm_fast.config import EnvConfig
from storm_fast.envs import area
from storm_fast.envs.games import env_seed, make, noops_of_episode
from storm_fast.envs.interface import SIZE, AnyCollector, Frames, Steps, check_kind, checked_actions, checked_out
from storm_fast.errors import InputError

_SNAPSHOT_EVERY = 8
"""Steps between the snapshots that `state_dict` replays from."""


class _Snapshot(NamedTuple):
    """A game some steps ago, and what was done since: enough to come back exactly.

    ALE's saved state lacks the action that a sticky frame repeats. It is made again by replaying at least
    _SNAPSHOT_EVERY steps, of which some frame is not sticky, under the saved random numbers.
    """

    emulator: npt.NDArray[np.uint8]
    lives: int
    before: int  # the action sent before the snapshot
    actions: list[int]  # those sent since
    episode: int = 0  # of the game, counted from 0; the next one's


class GymCollector(AnyCollector):
    """One gymnasium environment after the other, in the calling thread."""

    name = "GymCollector (gymnasium + ale-py)"

    def __init__(self, game: str, config: EnvConfig) -> None:
        """Open config.num_envs games. Raises InputError for a game that ALE does not know."""
        self.num_envs, self.frame_skip, self.noops = config.num_envs, config.frame_skip, config.noops
        self.envs = [make(game, config) for _ in range(config.num_envs)]
        self.num_actions = len(self.envs[0]._action_set)
        N = config.num_envs
        self._own_NYXP = np.zeros((N, SIZE, SIZE, 3), np.uint8)
        self.obs_NYXP = self._own_NYXP
        self.terminal_obs_NYXP = np.zeros_like(self.obs_NYXP)
        self.lives_N = np.zeros(N, np.int64)
        self.return_N = np.zeros(N, np.float64)
        self.length_N = np.zeros(N, np.int64)
        self.seed_N, self.episode_N = [0] * N, [0] * N  # what no-ops depend on
        self._action_N: npt.NDArray[np.int64] | None = None
        # Of every game the newest snapshot, and ahead of it the one before, once there is one.
        self._snapshots: list[list[_Snapshot]] = []
        self.restored_exactly = True

    def reset(self, seed: int, out: Frames | None = None) -> npt.NDArray[np.uint8]:
        """Seed and start every game; later episodes go on with the same random numbers."""
        self._action_N = None
        self._write_into(out)
        for i in range(self.num_envs):
            self.seed_N[i], self.episode_N[i] = env_seed(seed, i), 0
            self._start(i, env_seed(seed, i))
        self._snapshots = [[self._snapshot(i)] for i in range(self.num_envs)]
        return self.obs_NYXP

    def send(self, action_N: npt.NDArray[np.int64], out: Frames | None = None) -> None:
        """Check and keep the actions; the games step in `recv`."""
        if self._action_N is not None:
            raise ValueError("want recv() after send(); got a second send()")
        checked = checked_actions(action_N, self.num_envs, self.num_actions)
        self._write_into(out)
        self._action_N = checked

    def _write_into(self, out: Frames | None) -> None:
        self.obs_NYXP = self._own_NYXP if out is None else checked_out(out, self._own_NYXP.shape)

    def recv(self) -> Steps:
        """Step every game; those that end begin their next episode."""
        if self._action_N is None:
            raise ValueError("want send() before recv(); got recv() alone")
        action_N, self._action_N = self._action_N, None
        N = self.num_envs
        reward_N = np.zeros(N, np.float32)
        flags_3N = np.zeros((3, N), np.bool_)
        for i, action in enumerate(action_N):
            self._record(i, int(action))
            self.obs_NYXP[i], reward_N[i], *flags_3N[:, i] = self._step(i, int(action))
        self.return_N += reward_N
        self.length_N += 1
        return_N, length_N = self.return_N.copy(), self.length_N.copy()
        terminated_N, truncated_N, life_lost_N = flags_3N
        for i in map(int, np.flatnonzero(terminated_N | truncated_N)):
            self.terminal_obs_NYXP[i] = self.obs_NYXP[i]
            self._start(i, None)
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

    def _step(self, i: int, action: int) -> tuple[npt.NDArray[np.uint8], float, bool, bool, bool]:
        """Repeat the action; observation, reward, terminated, truncated, life lost."""
        frames: list[npt.NDArray[np.uint8]] = []
        total = 0.0
        for _ in range(self.frame_skip):
            frame, reward, terminated, truncated, info = self.envs[i].step(action)
            frames.append(frame)
            total += float(reward)
            if terminated or truncated:
                break
        life_lost = info["lives"] < self.lives_N[i]
        self.lives_N[i] = info["lives"]
        obs = area.resize(np.maximum.reduce(frames[-2:]), SIZE, SIZE)
        return obs, total, terminated, truncated, bool(life_lost)

    def _start(self, i: int, seed: int | None) -> None:
        env = self.envs[i]
        frame, info = env.reset(seed=seed)
        for _ in range(noops_of_episode(self.seed_N[i], self.episode_N[i], self.noops)):
            frame, _, terminated, truncated, info = env.step(0)
            if terminated or truncated:
                frame, info = env.reset()
                break
        self.episode_N[i] += 1
        self.obs_NYXP[i] = area.resize(frame, SIZE, SIZE)
        self.lives_N[i] = info["lives"]
        self.return_N[i] = self.length_N[i] = 0

    def _emulator(self, i: int) -> npt.NDArray[np.uint8]:
        """ALE's own state, its random numbers included."""
        state: Any = self.envs[i].ale.cloneState(include_rng=True).__getstate__()
        return np.frombuffer(state, np.uint8).copy()

    def _snapshot(self, i: int, before: int = 0) -> _Snapshot:
        return _Snapshot(self._emulator(i), int(self.lives_N[i]), before, [], self.episode_N[i])

    def _record(self, i: int, action: int) -> None:
        """Note an action that is about to be sent, and take a new snapshot when one is due."""
        newest = self._snapshots[i][-1]
        if len(newest.actions) >= _SNAPSHOT_EVERY:
            self._snapshots[i] = [newest, self._snapshot(i, newest.actions[-1])]
        for snapshot in self._snapshots[i]:
            snapshot.actions.append(action)

    def _replay(self, i: int, snapshot: _Snapshot, before: int) -> None:
        """Go back to a snapshot, with `before` as the action that sticks, and do again what was done since."""
        env = self.envs[i]
        env.reset(seed=0)
        for _ in range(40):  # so that the last of these is not sticky, all but surely
            env.ale.act(env._action_set[before])
        env.ale.restoreState(ale_py.ALEState(snapshot.emulator.tobytes()))
        self.lives_N[i], self.episode_N[i] = snapshot.lives, snapshot.episode
        for action in snapshot.actions:
            _, _, terminated, truncated, _ = self._step(i, action)
            if terminated or truncated:
                self._start(i, None)

    def state_dict(self) -> dict[str, Any]:
        """Emulators with their random numbers, and the counts of the running episodes."""
        return {
            "collector": type(self).__name__,
            "emulators": [self._emulator(i) for i in range(self.num_envs)],
            "snapshots": [[s._replace(actions=[*s.actions])._asdict() for s in game] for game in self._snapshots],
            "obs": self.obs_NYXP.copy(),
            "terminal_obs": self.terminal_obs_NYXP.copy(),
            "lives": self.lives_N.copy(),
            "return": self.return_N.copy(),
            "length": self.length_N.copy(),
            "seeds": [*self.seed_N],
            "episodes": [*self.episode_N],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        `restored_exactly` tells whether every emulator arrived at the very state that was saved; where one did not
        (seen in Qbert, ale-py 0.12.1, 3 times of 40), the saved state is put in its place.
        """
        check_kind(state, self)
        if len(state["emulators"]) != self.num_envs:
            raise InputError(f"want the state of {self.num_envs} environments; got {len(state['emulators'])}")
        self.restored_exactly = True
        self._action_N = None
        self._snapshots = []
        # Earlier versions saved neither, and began no episode with no-ops.
        none = [0] * self.num_envs
        self.seed_N, episodes = [*map(int, state.get("seeds", none))], state.get("episodes", none)
        for i, env in enumerate(self.envs):
            saved = np.asarray(state["emulators"][i])
            saved_snapshots = [_Snapshot(**values) for values in state["snapshots"][i]]
            self._snapshots.append(
                [s._replace(emulator=np.asarray(s.emulator).copy(), actions=[*s.actions]) for s in saved_snapshots]
            )
            snapshot = self._snapshots[i][0]
            # The action that stuck before the snapshot was most likely the one sent; arriving at the saved state
            # proves it, and else another is tried.
            others = [action for action in range(self.num_actions) if action != snapshot.before]
            for before in (snapshot.before, *others):
                self._replay(i, snapshot, before)
                if np.array_equal(self._emulator(i), saved):
                    break
            else:
                self.restored_exactly = False
                env.ale.restoreState(ale_py.ALEState(saved.tobytes()))
            self.lives_N[i] = int(state["lives"][i])
            self.episode_N[i] = int(episodes[i])
        self.obs_NYXP = self._own_NYXP
        self.obs_NYXP[:], self.terminal_obs_NYXP[:] = state["obs"], state["terminal_obs"]
        self.lives_N[:], self.return_N[:], self.length_N[:] = state["lives"], state["return"], state["length"]
