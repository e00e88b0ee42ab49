"""The adapter for gymnasium: its spaces, ends and seeds, and gymnasium's own wrappers and checks on it."""

import weakref

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from storm_fast.config import EnvConfig
from storm_fast.envs import Collector, GymCollector, extension
from storm_fast.envs.games import make

pytestmark = pytest.mark.skipif(extension() is None, reason="the C++ collector was not built")


def envs(num_envs: int = 3, **settings: object) -> gymnasium.vector.VectorEnv:  # type: ignore[type-arg]
    import storm_fast.envs.vector_env  # noqa: F401  # registers it

    return gymnasium.make_vec("storm_fast/Atari-v0", num_envs=num_envs, game="Breakout", **settings)


def test_every_step_lies_in_the_spaces_and_keeps_its_dtypes() -> None:
    vector = envs(frame_cap=200)
    obs, info = vector.reset(seed=3)
    assert obs in vector.observation_space
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    for _ in range(120):
        obs, reward, terminated, truncated, info = vector.step(vector.action_space.sample())
        assert obs in vector.observation_space
        assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
        assert reward.shape == terminated.shape == truncated.shape == info["life_lost"].shape == (3,)
        assert ("final_obs" in info) == (terminated | truncated).any()


def test_the_same_seed_gives_the_same_steps_and_observations_are_not_overwritten() -> None:
    runs = []
    for _ in range(2):
        vector = envs()
        rows = [vector.reset(seed=5)]
        vector.action_space.seed(1)
        runs.append([*rows, *(vector.step(vector.action_space.sample()) for _ in range(40))])
    assert data_equivalence(runs[0], runs[1])
    assert len({row[0].tobytes() for row in runs[0]}) > 10


def test_resets_without_a_seed_follow_from_the_last_seed() -> None:
    runs = []
    for seed in (5, np.int64(5), 6):
        vector = envs()
        vector.reset(seed=seed)
        vector.reset()
        runs.append([vector.step(np.full(3, 1))[0] for _ in range(30)])
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_an_integer_seeds_environment_i_as_gymnasium_would() -> None:
    vector = envs(num_envs=2)
    _obs, _ = vector.reset(seed=7)
    twin = GymCollector("Breakout", EnvConfig(num_envs=2))
    twin.reset(0)
    for i in range(2):
        twin._start(i, 7 + i)
    for _ in range(100):
        actions = vector.action_space.sample()
        assert np.array_equal(vector.step(actions)[0], twin.step(actions).obs_NYXP)


def test_an_end_hands_over_the_last_frame_and_the_totals() -> None:
    vector = envs(num_envs=2, frame_cap=40)
    twin = GymCollector("Breakout", EnvConfig(num_envs=2, frame_cap=40))
    vector.reset(seed=0)
    twin.reset(0)
    for i in range(2):
        twin._start(i, i)
    for t in range(1, 31):
        actions = vector.action_space.sample()
        _, _, _, truncated, info = vector.step(actions)
        want = twin.step(actions)
        assert truncated.all() == (t % 10 == 0)
        if truncated.any():
            assert np.array_equal(np.stack(info["final_obs"]), want.terminal_obs_NYXP)
            assert np.array_equal(info["final_info"]["episode_return"], want.episode_return_N)
            assert info["final_info"]["episode_length"].tolist() == [10, 10]


def test_gymnasiums_vector_wrappers_work_on_it() -> None:
    vector = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs(num_envs=2, frame_cap=40))
    vector = gymnasium.wrappers.vector.ClipReward(vector, 0.0, 0.5)  # type: ignore[assignment]
    vector.reset(seed=0)
    lengths: list[int] = []
    for _ in range(25):
        _, reward, terminated, truncated, info = vector.step(vector.action_space.sample())
        assert set(reward.tolist()) <= {0.0, 0.5}
        if (terminated | truncated).any():
            lengths += info["episode"]["l"].tolist()
    assert lengths == [10, 10, 10, 10]


def test_the_spaces_are_those_of_gymnasiums_own_vector_environment() -> None:
    theirs = SyncVectorEnv([lambda: make("Breakout", EnvConfig())] * 3, observation_mode="different")
    assert envs().action_space == theirs.action_space


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda v: v.reset(seed=[1, 2]), "want 3 seeds; got 2"),
        (lambda v: v.reset(options={"reset_mask": 1}), "want no options"),
        (lambda v: v.step(np.array([0, 1, 4])), r"want actions in \[0, 4\)"),
    ],
)
def test_bad_calls_raise(call: object, wanted: str) -> None:
    vector = envs()
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=wanted):
        call(vector)  # type: ignore[operator]


def test_closing_ends_the_games_and_their_threads_and_stepping_afterwards_raises() -> None:
    vector = envs(num_threads=2)
    vector.reset(seed=0)
    games = weakref.ref(vector.unwrapped.collector)  # type: ignore[attr-defined]
    vector.close()
    vector.close()
    assert games() is None
    for call in (lambda: vector.step(np.zeros(3, np.int64)), lambda: vector.reset(seed=0)):
        with pytest.raises(ClosedEnvironmentError, match="this one was closed"):
            call()


@pytest.mark.parametrize(("size", "gray"), [((84, 84), True), ((64, 64), True), ((100, 80), False)])
def test_size_and_gray_go_through_to_the_spaces_and_the_collector(size: tuple[int, int], gray: bool) -> None:
    vector = envs(num_envs=2, size=size, gray=gray)
    obs_NYXP, _ = vector.reset(seed=[7, 8])
    assert obs_NYXP.shape == (2, *size, 1 if gray else 3)
    assert obs_NYXP in vector.observation_space
    direct = Collector("Breakout", EnvConfig(num_envs=2), size=size, gray=gray)
    assert np.array_equal(obs_NYXP, direct.reset_seeds([7, 8]))
    for _ in range(30):
        actions = vector.action_space.sample()
        assert np.array_equal(vector.step(actions)[0], direct.step(actions).obs_NYXP)
    assert len(np.unique(direct.obs_NYXP)) > 3
