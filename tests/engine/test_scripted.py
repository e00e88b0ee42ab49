"""Scripted policies: what `play` and `record` record."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from storm_fast.config import EnvConfig
from storm_fast.data import demonstration
from storm_fast.data.demonstration import KINDS as NAMES
from storm_fast.data.demonstration import Arrays
from storm_fast.engine import scripted
from storm_fast.envs import atari
from storm_fast.errors import InputError


@pytest.fixture(scope="module")
def freeway() -> Arrays:
    """One recorded episode; it takes seconds, so the tests share it and must not write to it."""
    arrays = scripted.record("Freeway", EnvConfig(), seed=1)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def test_the_freeway_script_records_one_whole_episode_mostly_going_up(freeway: Arrays) -> None:
    n = len(freeway["action"])
    assert 2000 <= n < 2100
    assert freeway["terminated"].sum() <= 1
    assert not freeway["terminated"][:-1].any()
    assert freeway["terminated"][-1]
    assert not freeway["life_loss"].any()
    up = (freeway["action"] == 1).mean()  # NOOP, UP, DOWN
    assert abs(up - 0.8) < 4 * (0.8 * 0.2 / n) ** 0.5
    assert set(np.unique(freeway["action"])) == {0, 1}
    assert set(np.unique(freeway["reward"])) == {0, 1}
    assert freeway["reward"].sum() >= 5


def test_what_is_recorded_loads(tmp_path: Path, freeway: Arrays) -> None:
    demonstration.save(tmp_path / "freeway.npz", freeway)
    loaded = demonstration.load(tmp_path / "freeway.npz", atari("Freeway"), 64)
    assert all(np.array_equal(loaded[name], freeway[name]) for name in NAMES)


def test_play_shows_the_policy_what_it_stores_and_stores_what_it_did() -> None:
    seen: list[npt.NDArray[np.uint8]] = []

    def act(obs_YXP: npt.NDArray[np.uint8]) -> int:
        seen.append(obs_YXP.copy())
        return len(seen) % 4

    arrays = scripted.play("Breakout", EnvConfig(num_envs=2), 3, act, max_steps=120)
    n = len(arrays["action"])
    assert arrays["action"].tolist() == [(t + 1) % 4 for t in range(n)]
    assert np.array_equal(arrays["obs"], np.stack(seen))
    assert len(np.unique(arrays["obs"].reshape(n, -1), axis=0)) > n // 2
    assert n == 120 or arrays["terminated"][-1]
    assert arrays["life_loss"].sum() >= 1
    shapes = {name: (array.shape, array.dtype.kind) for name, array in arrays.items()}
    flat = {"action": ((n,), "i"), "reward": ((n,), "f"), "terminated": ((n,), "b"), "life_loss": ((n,), "b")}
    assert shapes == {"obs": ((n, 64, 64, 3), "u"), **flat}


def test_play_is_repeatable_by_its_seed() -> None:
    runs = []
    for seed in (1, 1, 2):
        rng = np.random.default_rng(0)
        runs.append(scripted.play("Pong", EnvConfig(), seed, lambda _, rng=rng: int(rng.integers(6)), max_steps=60))
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in NAMES)
    assert np.array_equal(runs[0]["action"], runs[2]["action"])
    assert not np.array_equal(runs[0]["obs"], runs[2]["obs"])


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_script_at_its_limits_takes_always_or_never_its_action(probability: float) -> None:
    rng = np.random.default_rng(0)
    for actions in (["NOOP", "UP", "DOWN"], ["DOWN", "NOOP", "UP"]):
        taken = {scripted.SCRIPTS["Freeway"].act(actions, probability, rng) for _ in range(100)}
        assert taken == {actions.index("UP" if probability else "NOOP")}


def test_a_game_without_a_script_raises() -> None:
    with pytest.raises(InputError, match=r"want a game with a scripted policy \(Freeway\); got Pong"):
        scripted.record("Pong", EnvConfig(), 1)


def test_a_game_that_does_not_exist_raises_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean Freeway"):
        scripted.record("freewy", EnvConfig(), 1)


def test_several_episodes_are_recorded_one_after_the_other() -> None:
    env = EnvConfig(frame_cap=200)
    one, three = scripted.record("Freeway", env, 1), scripted.record("Freeway", env, 1, episodes=3)
    n = len(one["action"])
    assert len(three["action"]) == 3 * n
    assert np.array_equal(three["obs"][:n], one["obs"])
    assert not np.array_equal(three["action"][n : 2 * n], one["action"])
