"""Collectors against a pipeline written here a second time, and their seeds, ends, errors and restarts."""

import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import ale_py
import cv2
import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch

from storm_fast.config import EnvConfig
from storm_fast.envs import (
    AnyCollector,
    Collector,
    GymCollector,
    Steps,
    action_count,
    check_game,
    env_seed,
    extension,
    games,
)
from storm_fast.envs.games import noops_of_episode
from storm_fast.errors import InputError

Actions = npt.NDArray[np.int64]
Kind = type[GymCollector] | type[Collector]  # those that are exact


@pytest.fixture(params=[GymCollector, Collector])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of them; the C++ one where it was built."""
    if request.param is Collector and extension() is None:
        pytest.skip("the C++ collector was not built")
    chosen: Kind = request.param
    return chosen


class Reference(NamedTuple):
    """One step of one game as the second pipeline sees it."""

    obs_YXP: npt.NDArray[np.uint8]
    reward: float
    terminated: bool
    truncated: bool
    life_lost: bool
    episode_return: float
    episode_length: int
    terminal_obs_YXP: npt.NDArray[np.uint8] | None


def shrink(frame_YXP: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.resize(frame_YXP, (64, 64), interpolation=cv2.INTER_AREA), np.uint8)


def reference_steps(game: str, seed: int, config: EnvConfig, actions: list[int]) -> Iterator[Reference]:
    """The environment by its definition, with gymnasium and OpenCV; the first value is the reset's."""
    gymnasium.register_envs(ale_py)
    env = gymnasium.make(
        f"ALE/{game}-v5",
        frameskip=1,
        repeat_action_probability=config.sticky,
        full_action_space=config.full_action_space,
        max_num_frames_per_episode=config.frame_cap,
    )
    frame_YXP, info = env.reset(seed=seed)
    lives, episode_return, episode_length = info["lives"], 0.0, 0
    yield Reference(shrink(frame_YXP), 0.0, False, False, False, 0.0, 0, None)
    for action in actions:
        previous_YXP = np.zeros_like(frame_YXP)
        frame_YXP = previous_YXP
        reward, terminated, truncated = 0.0, False, False
        for _ in range(4):
            if not (terminated or truncated):
                previous_YXP = frame_YXP
                frame_YXP, gained, terminated, truncated, info = env.step(action)
                reward += float(gained)
        obs_YXP = shrink(np.maximum(previous_YXP, frame_YXP))
        life_lost, lives = info["lives"] < lives, info["lives"]
        episode_return, episode_length = episode_return + reward, episode_length + 1
        done = episode_return, episode_length
        terminal_obs_YXP = None
        if terminated or truncated:
            terminal_obs_YXP = obs_YXP
            frame_YXP, info = env.reset()
            obs_YXP, lives, episode_return, episode_length = shrink(frame_YXP), info["lives"], 0.0, 0
        yield Reference(obs_YXP, reward, bool(terminated), bool(truncated), life_lost, *done, terminal_obs_YXP)
    env.close()


def random_actions(steps: int, N: int, num_actions: int, seed: int = 0) -> Actions:
    return np.random.default_rng(seed).integers(0, num_actions, (steps, N))


def copy(steps: Steps) -> Steps:
    """The collector owns its arrays and writes them again."""
    return Steps(*(x.copy() for x in steps))


def play(collector: AnyCollector, action_TN: Actions) -> list[Steps]:
    return [copy(collector.step(action_N)) for action_N in action_TN]


def assert_same(ours: list[Steps], theirs: list[Steps]) -> None:
    """Equal in every field, terminal frames where a game ended."""
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        for name in Steps._fields[:-1]:
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
        ended_N = a.terminated_N | a.truncated_N
        assert np.array_equal(a.terminal_obs_NYXP[ended_N], b.terminal_obs_NYXP[ended_N])


def copy_state(state: dict[str, Any]) -> dict[str, Any]:
    """As after a file: shares nothing with the collector that gave it."""
    copied: dict[str, Any] = pickle.loads(pickle.dumps(state))
    return copied


def assert_equal_states(a: Any, b: Any) -> None:
    """Equal values and arrays, at any depth."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
    if isinstance(a, dict | list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else zip(a, b, strict=True):
            assert_equal_states(x, y)
    else:
        assert np.array_equal(a, b)


def frames(steps: list[Steps]) -> npt.NDArray[np.uint8]:
    return np.stack([s.obs_NYXP for s in steps])


def assert_equals_reference(kind: Kind, game: str, config: EnvConfig, seed: int, count: int) -> list[Steps]:
    """Play `count` steps here and in the second pipeline; give the collector's."""
    collector = kind(game, config)
    action_TN = random_actions(count, config.num_envs, collector.num_actions)
    first_NYXP = collector.reset(seed).copy()
    steps = play(collector, action_TN)
    for i in range(config.num_envs):
        start, *wanted = reference_steps(game, env_seed(seed, i), config, action_TN[:, i].tolist())
        assert np.array_equal(first_NYXP[i], start.obs_YXP)
        for got, want in zip(steps, wanted, strict=True):
            assert np.array_equal(got.obs_NYXP[i], want.obs_YXP)
            assert got.reward_N[i] == want.reward
            assert got.terminated_N[i] == want.terminated
            assert got.truncated_N[i] == want.truncated
            assert got.life_lost_N[i] == want.life_lost
            assert got.episode_return_N[i] == want.episode_return
            assert got.episode_length_N[i] == want.episode_length
            if want.terminal_obs_YXP is not None:
                assert np.array_equal(got.terminal_obs_NYXP[i], want.terminal_obs_YXP)
    return steps


@pytest.mark.parametrize(
    ("game", "config"),
    [
        ("Pong", EnvConfig()),
        ("Pong", EnvConfig(frame_cap=250)),  # an episode's last step has two frames
        ("Pong", EnvConfig(frame_cap=201)),  # and here one
        ("Breakout", EnvConfig(sticky=0.0)),
        ("Breakout", EnvConfig(num_envs=3)),
    ],
    ids=["pong", "pong-cap-250", "pong-cap-201", "breakout-not-sticky", "breakout-of-three"],
)
def test_steps_equal_those_of_an_independent_pipeline(kind: Kind, game: str, config: EnvConfig) -> None:
    steps = assert_equals_reference(kind, game, config, seed=3, count=200)
    ended = sum(int((s.terminated_N | s.truncated_N).sum()) for s in steps)
    # Pong lasts longer than this unless it is cut; Breakout does not.
    assert (ended > 0) == (game == "Breakout" or config.frame_cap < 1000)
    assert len(np.unique(frames(steps).reshape(200, -1), axis=0)) > 50


def test_dtypes_and_shapes_are_those_of_the_interface(kind: Kind) -> None:
    collector = kind("Pong", EnvConfig(num_envs=3))
    assert collector.reset(0).shape == (3, 64, 64, 3)
    assert (collector.num_envs, collector.num_actions) == (3, 6)
    steps = collector.step(np.zeros(3, np.int64))
    numbers = [np.uint8, np.float32, np.bool_, np.bool_, np.bool_, np.float64, np.int64, np.uint8]
    for name, value, dtype in zip(Steps._fields, steps, numbers, strict=True):
        assert value.dtype == dtype, name
        assert value.shape == ((3, 64, 64, 3) if name.endswith("NYXP") else (3,)), name


def test_the_same_seed_gives_the_same_game_and_another_seed_another(kind: Kind) -> None:
    action_TN = random_actions(60, 2, 6)
    runs = []
    for seed in (1, 1, 2):
        collector = kind("Pong", EnvConfig(num_envs=2))
        collector.reset(seed)
        runs.append(play(collector, action_TN))
    assert_same(runs[0], runs[1])
    assert not np.array_equal(frames(runs[0]), frames(runs[2]))


def test_resetting_a_used_collector_starts_the_same_game_again(kind: Kind) -> None:
    action_TN = random_actions(60, 2, 4)
    collector = kind("Breakout", EnvConfig(num_envs=2))
    first_NYXP = collector.reset(1).copy()
    steps = play(collector, action_TN)
    assert np.array_equal(collector.reset(1), first_NYXP)
    assert_same(play(collector, action_TN), steps)


def test_environments_of_one_collector_differ(kind: Kind) -> None:
    collector = kind("Pong", EnvConfig(num_envs=2))
    collector.reset(1)
    seen_TNYXP = frames(play(collector, random_actions(60, 1, 6).repeat(2, axis=1)))
    assert not np.array_equal(seen_TNYXP[:, 0], seen_TNYXP[:, 1])


def test_no_two_environments_of_any_runs_share_a_seed() -> None:
    seeds = {env_seed(seed, i) for seed in range(40) for i in range(25)}
    assert len(seeds) == 1000
    assert env_seed(1, 0) == env_seed(1, 0)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_only_sticky_actions_make_the_same_actions_lead_elsewhere(kind: Kind) -> None:
    action_TN = random_actions(100, 1, 6)
    seen = {}
    for sticky in (0.0, 0.25):
        for seed in (1, 2):
            collector = kind("Pong", EnvConfig(sticky=sticky))
            collector.reset(seed)
            seen[sticky, seed] = frames(play(collector, action_TN))
    assert np.array_equal(seen[0.0, 1], seen[0.0, 2])
    assert not np.array_equal(seen[0.25, 1], seen[0.25, 2])
    assert not np.array_equal(seen[0.0, 1], seen[0.25, 1])


def test_the_full_action_space_has_18_actions_and_the_minimal_one_the_games_own(kind: Kind) -> None:
    assert (action_count("Pong", False), action_count("Pong", True)) == (6, 18)
    assert (action_count("Breakout", False), action_count("Freeway", False)) == (4, 3)
    collector = kind("Pong", EnvConfig(full_action_space=True))
    assert collector.num_actions == 18
    assert_equals_reference(kind, "Pong", EnvConfig(full_action_space=True), seed=5, count=40)
    collector.reset(0)
    with pytest.raises(ValueError, match=r"want actions in \[0, 18\); got \[18\]"):
        collector.send(np.array([18]))


def test_an_ended_game_is_reset_within_the_step_and_keeps_its_last_frame_aside(kind: Kind) -> None:
    collector = kind("Breakout", EnvConfig())
    collector.reset(2)
    start_YXP = collector.obs_NYXP[0].copy()
    steps = play(collector, random_actions(400, 1, 4))
    ends = [t for t, s in enumerate(steps) if s.terminated_N[0]]
    assert len(ends) >= 2
    assert not any(s.truncated_N[0] for s in steps)
    for first, last in zip([0, *(e + 1 for e in ends)], ends, strict=False):
        assert [int(s.episode_length_N[0]) for s in steps[first : last + 1]] == list(range(1, last - first + 2))
        total_T = np.cumsum([s.reward_N[0] for s in steps[first : last + 1]])
        assert np.array_equal([s.episode_return_N[0] for s in steps[first : last + 1]], total_T)
        # Breakout's first frame is always the same, and its last is not that one.
        assert np.array_equal(steps[last].obs_NYXP[0], start_YXP)
        assert not np.array_equal(steps[last].terminal_obs_NYXP[0], start_YXP)


def test_breakout_loses_five_lives_an_episode_each_flagged_once() -> None:
    collector = GymCollector("Breakout", EnvConfig())
    collector.reset(4)
    lost, whole = 0, 0
    for action_N in random_actions(600, 1, 4):
        lives = collector.envs[0].ale.lives()
        steps = collector.step(action_N)
        ended = bool(steps.terminated_N[0])
        assert steps.life_lost_N[0] == (ended or collector.envs[0].ale.lives() < lives)
        lost += int(steps.life_lost_N[0])
        if ended:
            assert lost == 5
            lost, whole = 0, whole + 1
    assert whole >= 2


def test_the_frame_cap_truncates_and_does_not_terminate(kind: Kind) -> None:
    collector = kind("Pong", EnvConfig(frame_cap=40))
    collector.reset(0)
    steps = play(collector, random_actions(35, 1, 6))
    assert [t for t, s in enumerate(steps) if s.truncated_N[0]] == [9, 19, 29]
    assert not any(s.terminated_N[0] for s in steps)
    assert [int(s.episode_length_N[0]) for s in steps] == [t % 10 + 1 for t in range(35)]
    assert all((s.terminal_obs_NYXP != s.obs_NYXP).any() for s in steps if s.truncated_N[0])


NO_ACTIONS = [
    (np.array([0.0, 1.0]), "want 2 integer actions; got float64"),
    (np.array([True, False]), "want 2 integer actions; got bool"),
    (np.array([0]), "want 2 integer actions"),
    (np.array([0, 1, 2]), "want 2 integer actions"),
    (np.array([[0, 1]]), "want 2 integer actions"),
    (np.array(0), "want 2 integer actions"),
    (np.array([0, 6]), r"want actions in \[0, 6\); got \[0, 6\]"),
    (np.array([-1, 0]), r"want actions in \[0, 6\); got \[-1, 0\]"),
    (torch.zeros(2, requires_grad=True), "want 2 integer actions in host memory; got Tensor"),
    (torch.zeros(2, dtype=torch.int64, device="meta"), "want 2 integer actions in host memory; got Tensor"),
]


def test_actions_may_be_read_only_of_any_integer_dtype_and_of_torch(kind: Kind) -> None:
    collector, plain = (kind("Pong", EnvConfig(num_envs=2)) for _ in range(2))
    collector.reset(0)
    plain.reset(0)
    read_only_N = np.array([2, 3])
    read_only_N.flags.writeable = False
    given: list[Any] = [read_only_N, read_only_N.astype(np.uint8), read_only_N.astype(">i8"), torch.tensor([2, 3])]
    given += [np.array([2, 0, 3])[::2], np.broadcast_to(np.array([3]), (2,)), np.broadcast_to(np.int64(2), (2,))]
    for action_N in given * 5:
        assert_same([copy(collector.step(action_N))], [copy(plain.step(np.asarray(action_N).astype(np.int64)))])


def test_actions_that_are_none_raise_and_leave_the_games_where_they_were(kind: Kind) -> None:
    collector, untouched = (kind("Pong", EnvConfig(num_envs=2)) for _ in range(2))
    collector.reset(0)
    untouched.reset(0)
    for seed, (actions, wanted) in enumerate(NO_ACTIONS):
        with pytest.raises(ValueError, match=wanted):
            collector.send(actions)
        action_TN = random_actions(10, 2, 6, seed)
        assert_same(play(collector, action_TN), play(untouched, action_TN))


def test_a_second_send_raises_and_the_first_still_counts(kind: Kind) -> None:
    collector, untouched = (kind("Pong", EnvConfig(num_envs=2)) for _ in range(2))
    collector.reset(0)
    untouched.reset(0)
    action_TN = random_actions(40, 2, 6)
    collector.send(action_TN[0])
    with pytest.raises(ValueError, match=r"want recv\(\) after send\(\)"):
        collector.send((action_TN[0] + 1) % 6)
    assert_same([copy(collector.recv()), *play(collector, action_TN[1:])], play(untouched, action_TN))


def test_recv_without_send_raises_and_does_not_step(kind: Kind) -> None:
    collector, untouched = (kind("Pong", EnvConfig(num_envs=2)) for _ in range(2))
    collector.reset(0)
    untouched.reset(0)
    action_TN = random_actions(40, 2, 6)
    with pytest.raises(ValueError, match=r"want send\(\) before recv\(\)"):
        collector.recv()
    assert_same(play(collector, action_TN), play(untouched, action_TN))


def test_what_the_caller_writes_after_send_does_not_matter(kind: Kind) -> None:
    collector, untouched = (kind("Pong", EnvConfig(num_envs=2)) for _ in range(2))
    collector.reset(0)
    untouched.reset(0)
    action_N = np.array([2, 3])
    for _ in range(30):
        collector.send(action_N)
        action_N[:] = 0
        steps = copy(collector.recv())
        action_N[:] = [2, 3]
        assert_same([steps], [untouched.step(action_N)])


@pytest.mark.parametrize(
    ("game", "hint"),
    [
        ("pongg", "did you mean Pong"),
        ("PONG", "did you mean Pong"),
        ("ms_pacman", "did you mean MsPacman"),
        ("Ms Pacman", "did you mean MsPacman"),
        ("xyzxyzxyz", "for example "),
    ],
)
def test_an_unknown_game_raises_and_suggests_one(kind: Kind, game: str, hint: str) -> None:
    with pytest.raises(InputError, match=rf"want a game of ALE; got '{game}'; {hint}"):
        check_game(game)
    with pytest.raises(InputError, match=hint):
        kind(game, EnvConfig())


def test_the_games_of_atari_100k_are_known() -> None:
    assert {"Alien", "BankHeist", "Breakout", "Freeway", "MsPacman", "Pong", "Qbert", "UpNDown"} <= set(games())
    assert len(set(games())) == len(games()) > 50
    for game in ("Pong", "MsPacman"):
        check_game(game)


@pytest.mark.parametrize("game", ["Pong", "Breakout"])
@pytest.mark.parametrize("before", [0, 1, 150])
@pytest.mark.parametrize("noops", [0, 30])
def test_a_fresh_collector_goes_on_exactly_from_a_saved_state(kind: Kind, game: str, before: int, noops: int) -> None:
    config = EnvConfig(num_envs=2, frame_cap=640, noops=noops)  # so that Pong, too, ends after the restore
    collector = kind(game, config)
    collector.reset(5)
    play(collector, random_actions(before, 2, collector.num_actions))
    state = copy_state(collector.state_dict())
    action_TN = random_actions(200, 2, collector.num_actions, seed=1)
    wanted = play(collector, action_TN)
    fresh = kind(game, config)
    fresh.load_state_dict(state)
    got = play(fresh, action_TN)
    assert_same(got, wanted)
    assert any((s.terminated_N | s.truncated_N).any() for s in got)


@pytest.mark.parametrize("presses", [1, 3])
def test_a_restored_game_remembers_the_action_that_sticks(kind: Kind, presses: int) -> None:
    config = EnvConfig(num_envs=4, sticky=0.5)
    collector, fresh = kind("Pong", config), kind("Pong", config)
    collector.reset(0)
    play(collector, np.full((presses, 4), 2))  # RIGHT
    fresh.load_state_dict(copy_state(collector.state_dict()))
    action_TN = np.full((10, 4), 3)  # LEFT, which half of the games do not hear at first
    assert_same(play(fresh, action_TN), play(collector, action_TN))


@pytest.mark.parametrize("every", [1, 3])
def test_a_game_handed_from_collector_to_collector_goes_on_exactly(kind: Kind, every: int) -> None:
    config = EnvConfig(num_envs=2, frame_cap=36)  # 9 steps: ends fall between saves, and on them
    whole = kind("Breakout", config)
    whole.reset(5)
    action_TN = random_actions(12 * every, 2, 4)
    wanted = play(whole, action_TN)
    holder, other = kind("Breakout", config), kind("Breakout", config)
    holder.reset(5)
    got: list[Steps] = []
    for t in range(0, 12 * every, every):
        got += play(holder, action_TN[t : t + every])
        other.load_state_dict(copy_state(holder.state_dict()))
        holder, other = other, holder
    assert_same(got, wanted)


def test_a_state_stays_as_it_was_saved_and_can_be_loaded_twice(kind: Kind) -> None:
    config = EnvConfig(num_envs=2)
    collector = kind("Breakout", config)
    collector.reset(5)
    play(collector, random_actions(30, 2, 4))
    state = collector.state_dict()
    untouched = copy_state(state)
    action_TN = random_actions(30, 2, 4, seed=1)
    runs = [play(collector, action_TN)]
    for _ in range(2):
        fresh = kind("Breakout", config)
        fresh.load_state_dict(state)
        runs.append(play(fresh, action_TN))
        assert_equal_states(state, untouched)
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def test_a_restored_collector_shows_the_frame_to_act_on(kind: Kind) -> None:
    collector = kind("Pong", EnvConfig(num_envs=2))
    collector.reset(5)
    steps = play(collector, random_actions(50, 2, 6))
    fresh = kind("Pong", EnvConfig(num_envs=2))
    fresh.load_state_dict(collector.state_dict())
    assert np.array_equal(fresh.obs_NYXP, steps[-1].obs_NYXP)


def test_a_state_of_another_number_of_environments_raises(kind: Kind) -> None:
    collector = kind("Pong", EnvConfig(num_envs=2))
    collector.reset(0)
    state = collector.state_dict()
    with pytest.raises(InputError, match="want the state of 3 environments; got 2"):
        kind("Pong", EnvConfig(num_envs=3)).load_state_dict(state)


def test_no_ops_begin_episodes_in_numbers_that_vary_and_repeat(kind: Kind) -> None:
    # Of a game whose picture moves by itself, the first frames tell how many there were.
    config, shown = EnvConfig(num_envs=1, sticky=0.0, frame_cap=80, noops=30), []
    for _ in range(2):
        collector = kind("Freeway", config)
        firsts = [collector.reset(7)[0].copy()]
        while len(firsts) < 12:
            steps = collector.step(np.array([0]))
            if steps.truncated_N[0]:
                firsts.append(steps.obs_NYXP[0].copy())
        shown.append(np.stack(firsts))
    assert np.array_equal(*shown)
    assert len(np.unique(shown[0].reshape(12, -1), axis=0)) > 5
    counts = [noops_of_episode(7, episode, 30) for episode in range(3000)]
    assert set(counts) == set(range(31))
    assert max(counts.count(n) for n in range(31)) < 3000 / 31 + 6 * (3000 / 31) ** 0.5
