"""The fallback on ale_py's vector environment: its counts, ends and lives, and what it says it cannot do."""

import numpy as np
import pytest

from storm_fast.config import EnvConfig
from storm_fast.envs import AleVectorCollector, Steps
from storm_fast.errors import InputError
from tests.envs.test_exact import NO_ACTIONS, assert_same, play, random_actions


def collector(game: str = "Breakout", **settings: float) -> AleVectorCollector:
    made = AleVectorCollector(game, EnvConfig(**settings))  # type: ignore[arg-type]
    made.reset(0)
    return made


def test_shapes_and_dtypes_are_those_of_the_interface() -> None:
    steps = collector("Pong", num_envs=3).step(np.zeros(3, np.int64))
    numbers = [np.uint8, np.float32, np.bool_, np.bool_, np.bool_, np.float64, np.int64, np.uint8]
    for name, value, dtype in zip(Steps._fields, steps, numbers, strict=True):
        assert value.dtype == dtype, name
        assert value.shape == ((3, 64, 64, 3) if name.endswith("NYXP") else (3,)), name


def test_returns_and_lengths_are_counted_and_start_anew_after_an_end() -> None:
    steps = play(collector(num_envs=2), random_actions(500, 2, 4))
    for i in range(2):
        total, length, ends = 0.0, 0, 0
        for s in steps:
            total, length = total + float(s.reward_N[i]), length + 1
            assert (s.episode_return_N[i], s.episode_length_N[i]) == (total, length)
            if s.terminated_N[i]:
                total, length, ends = 0.0, 0, ends + 1
        assert ends >= 2


def test_breakout_loses_five_lives_an_episode_and_ends_once() -> None:
    lost = whole = 0
    for s in play(collector(), random_actions(800, 1, 4)):
        lost += int(s.life_lost_N[0])
        if s.terminated_N[0]:
            assert lost == 5
            lost, whole = 0, whole + 1
    assert whole >= 2


def test_the_frame_cap_truncates_and_takes_no_life() -> None:
    steps = play(collector("Pong", frame_cap=40), random_actions(35, 1, 6))
    assert [t for t, s in enumerate(steps) if s.truncated_N[0]] == [9, 19, 29]
    assert not any(s.terminated_N[0] or s.life_lost_N[0] for s in steps)


def test_the_same_seed_gives_the_same_games_and_another_seed_others() -> None:
    runs = []
    for seed in (1, 1, 2):
        made = AleVectorCollector("Pong", EnvConfig(num_envs=2))
        made.reset(seed)
        runs.append(play(made, random_actions(60, 2, 6)))
    assert_same(runs[0], runs[1])
    assert not all(np.array_equal(a.obs_NYXP, b.obs_NYXP) for a, b in zip(runs[0], runs[2], strict=True))


def test_actions_that_are_none_raise_where_the_library_itself_would_hang() -> None:
    made = collector("Pong", num_envs=2)
    for actions, wanted in NO_ACTIONS:
        with pytest.raises(ValueError, match=wanted):
            made.send(actions)
    made.send(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"want recv\(\) after send\(\)"):
        made.send(np.zeros(2, np.int64))
    made.recv()
    with pytest.raises(ValueError, match=r"want send\(\) before recv\(\)"):
        made.recv()


def test_writes_into_the_callers_memory() -> None:
    made, out = collector(num_envs=2), np.zeros((2, 64, 64, 3), np.uint8)
    assert made.step(np.zeros(2, np.int64), out).obs_NYXP is out
    assert out.any()
    with pytest.raises(ValueError, match="want out, writable uint8"):
        made.send(np.zeros(2, np.int64), out[:1])


def test_it_cannot_be_restored_exactly_and_says_so() -> None:
    made, other = collector(num_envs=2), collector(num_envs=2)
    assert made.restored_exactly
    other.load_state_dict(made.state_dict())
    assert not other.restored_exactly
    assert other.step(np.zeros(2, np.int64)).episode_length_N.tolist() == [1, 1]
    with pytest.raises(InputError, match="want the state of 2 environments; got 1"):
        other.load_state_dict(collector().state_dict())
    with pytest.raises(InputError, match="want the state of AleVectorCollector"):
        other.load_state_dict({"collector": "Collector"})
