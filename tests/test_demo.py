"""Demonstrations: what `load` accepts and refuses, what `record` records, what `to_replay` keeps."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from storm_fast import demo
from storm_fast.config import EnvConfig
from storm_fast.errors import InputError

NUM_ACTIONS, LENGTH = 3, 8
NAMES = ("obs", "action", "reward", "terminated", "life_loss")

Arrays = dict[str, npt.NDArray[Any]]


def valid(n: int = 12) -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "obs": rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8),
        "action": rng.integers(0, NUM_ACTIONS, n),
        "reward": rng.standard_normal(n).astype(np.float32),
        "terminated": np.arange(n) == n - 1,
        "life_loss": np.arange(n) % 5 == 4,
    }


def save(path: Path, arrays: Arrays) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def freeway() -> Arrays:
    """One recorded episode; it takes seconds, so the tests share it and must not write to it."""
    arrays = demo.record("Freeway", EnvConfig(), seed=1)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


@pytest.mark.parametrize("n", [LENGTH, 12])
@pytest.mark.parametrize("action_type", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("reward_type", [np.float32, np.float64])
def test_a_valid_file_loads_as_it_was_written(tmp_path: Path, n: int, action_type: type, reward_type: type) -> None:
    arrays = valid(n)
    arrays["action"] = arrays["action"].astype(action_type)
    arrays["reward"] = arrays["reward"].astype(reward_type)
    loaded = demo.load(save(tmp_path / "demo.npz", arrays), NUM_ACTIONS, LENGTH)
    assert set(loaded) == set(NAMES)
    for name in NAMES:
        assert np.array_equal(loaded[name], arrays[name])
        assert loaded[name].dtype == arrays[name].dtype


def test_further_arrays_are_left_out(tmp_path: Path) -> None:
    loaded = demo.load(save(tmp_path / "demo.npz", valid() | {"note": np.zeros(3)}), NUM_ACTIONS, LENGTH)
    assert set(loaded) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_array_raises(tmp_path: Path, name: str) -> None:
    arrays = valid()
    del arrays[name]
    with pytest.raises(InputError, match=rf"want arrays .*{name}.* in .*demo\.npz; got (?!.*\b{name}\b)"):
        demo.load(save(tmp_path / "demo.npz", arrays), NUM_ACTIONS, LENGTH)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("obs", np.zeros((12, 64, 64), np.uint8)),
        ("obs", np.zeros((12, 3, 64, 64), np.uint8)),
        ("obs", np.zeros((11, 64, 64, 3), np.uint8)),
        ("reward", np.zeros((12, 1), np.float32)),
        ("reward", np.zeros(13, np.float32)),
        ("reward", np.float32(0)),
        ("terminated", np.zeros(11, np.bool_)),
        ("life_loss", np.zeros((1, 12), np.bool_)),
        ("action", np.zeros((12, 1), np.int64)),
        ("obs", np.zeros((12, 64, 64, 3), np.float32)),
        ("obs", np.zeros((12, 64, 64, 3), np.uint16)),
        ("obs", np.zeros((12, 64, 64, 3), np.int8)),
        ("action", np.zeros(12, np.float32)),
        ("action", np.zeros(12, np.bool_)),
        ("reward", np.zeros(12, np.int64)),
        ("reward", np.zeros(12, np.complex64)),
        ("terminated", np.zeros(12, np.uint8)),
        ("life_loss", np.zeros(12, np.float32)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype}-{'x'.join(map(str, value.shape))}",
)
def test_an_array_of_another_shape_or_dtype_raises(tmp_path: Path, name: str, array: npt.NDArray[Any]) -> None:
    got = re.escape(f"got {array.dtype} {list(array.shape)}")
    with pytest.raises(InputError, match=rf"want {name} .*demo\.npz; {got}"):
        demo.load(save(tmp_path / "demo.npz", valid() | {name: np.asarray(array)}), NUM_ACTIONS, LENGTH)


def test_actions_that_are_one_number_raise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"demo\.npz"):
        demo.load(save(tmp_path / "demo.npz", valid() | {"action": np.array(1)}), NUM_ACTIONS, LENGTH)


@pytest.mark.parametrize("n", [0, 1, LENGTH - 1])
def test_less_than_one_window_raises(tmp_path: Path, n: int) -> None:
    with pytest.raises(InputError, match=rf"want at least {LENGTH} steps.*demo\.npz; got {n}"):
        demo.load(save(tmp_path / "demo.npz", valid(n)), NUM_ACTIONS, LENGTH)


@pytest.mark.parametrize("action", [NUM_ACTIONS, 17, -1])
def test_an_action_out_of_range_raises_and_is_named(tmp_path: Path, action: int) -> None:
    arrays = valid()
    arrays["action"][4] = action
    with pytest.raises(InputError, match=rf"want actions in \[0, {NUM_ACTIONS}\).*; got .*{action}\b"):
        demo.load(save(tmp_path / "demo.npz", arrays), NUM_ACTIONS, LENGTH)


@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_raises(tmp_path: Path, reward: float) -> None:
    arrays = valid()
    arrays["reward"][4] = reward
    with pytest.raises(InputError, match=r"want finite rewards in .*demo\.npz"):
        demo.load(save(tmp_path / "demo.npz", arrays), NUM_ACTIONS, LENGTH)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off", b"\x80\x04N."])
def test_a_file_that_is_no_zip_raises(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "demo.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"want a demonstration \.npz .*demo\.npz"):
        demo.load(path, NUM_ACTIONS, LENGTH)


def test_a_file_that_does_not_exist_and_a_folder_raise(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(InputError, match=rf"want a demonstration \.npz .*{path.name}"):
            demo.load(path, NUM_ACTIONS, LENGTH)


def test_a_single_saved_array_raises(tmp_path: Path) -> None:
    np.save(tmp_path / "demo.npy", np.zeros(12))
    with pytest.raises(InputError, match=r"demo\.npy"):
        demo.load(tmp_path / "demo.npy", NUM_ACTIONS, LENGTH)


def test_a_file_cut_short_raises(tmp_path: Path) -> None:
    path = save(tmp_path / "demo.npz", valid())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"want a demonstration \.npz .*demo\.npz"):
        demo.load(path, NUM_ACTIONS, LENGTH)


@pytest.mark.parametrize("value", [0x00, 0xFF])
def test_a_file_damaged_inside_an_array_raises(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "demo.npz", valid())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inside = archive.getinfo("obs.npy").header_offset + 200
    path.write_bytes(whole[:inside] + bytes([value]) * 2000 + whole[inside + 2000 :])
    with pytest.raises(InputError, match=r"want a demonstration \.npz .*demo\.npz"):
        demo.load(path, NUM_ACTIONS, LENGTH)


@pytest.mark.parametrize("name", ["reward", "note"])
def test_pickled_objects_raise_and_are_not_unpickled(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "unpickled",)

    objects = np.array([Trap()] * 12, dtype=object)
    with pytest.raises(InputError, match=r"want a demonstration \.npz .*demo\.npz: .*allow_pickle"):
        demo.load(save(tmp_path / "demo.npz", valid() | {name: objects}), NUM_ACTIONS, LENGTH)
    assert not (tmp_path / "unpickled").exists()


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
    loaded = demo.load(save(tmp_path / "freeway.npz", freeway), 3, 64)
    assert all(np.array_equal(loaded[name], freeway[name]) for name in NAMES)


def test_play_shows_the_policy_what_it_stores_and_stores_what_it_did() -> None:
    seen: list[npt.NDArray[np.uint8]] = []

    def act(obs_YXP: npt.NDArray[np.uint8]) -> int:
        seen.append(obs_YXP.copy())
        return len(seen) % 4

    arrays = demo.play("Breakout", EnvConfig(num_envs=2), 3, act, max_steps=120)
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
        runs.append(demo.play("Pong", EnvConfig(), seed, lambda _, rng=rng: int(rng.integers(6)), max_steps=60))
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in NAMES)
    assert np.array_equal(runs[0]["action"], runs[2]["action"])
    assert not np.array_equal(runs[0]["obs"], runs[2]["obs"])


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_script_at_its_limits_takes_always_or_never_its_action(probability: float) -> None:
    rng = np.random.default_rng(0)
    for actions in (["NOOP", "UP", "DOWN"], ["DOWN", "NOOP", "UP"]):
        taken = {demo.SCRIPTS["Freeway"].act(actions, probability, rng) for _ in range(100)}
        assert taken == {actions.index("UP" if probability else "NOOP")}


def test_a_game_without_a_script_raises() -> None:
    with pytest.raises(InputError, match=r"want a game with a scripted policy \(Freeway\); got Pong"):
        demo.record("Pong", EnvConfig(), 1)


def test_a_game_that_does_not_exist_raises_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean Freeway"):
        demo.record("freewy", EnvConfig(), 1)


@pytest.mark.parametrize("reward_type", [np.float32, np.float64])
def test_to_replay_keeps_every_step_and_ends_at_terminations_and_lost_lives(reward_type: type) -> None:
    arrays = valid()
    arrays["reward"] = arrays["reward"].astype(reward_type)
    arrays["action"] = arrays["action"].astype(np.int32)
    replay = demo.to_replay(arrays, torch.device("cpu"))
    assert len(replay) == 12
    batch = replay.sample(1, 12, torch.Generator().manual_seed(0))  # the one window there is
    assert batch.obs_BTYXP.dtype == torch.uint8
    assert batch.action_BT.dtype == torch.int64
    assert batch.reward_BT.dtype == torch.float32
    assert np.array_equal(batch.obs_BTYXP[0].numpy(), arrays["obs"])
    assert np.array_equal(batch.action_BT[0].numpy(), arrays["action"])
    assert np.array_equal(batch.reward_BT[0].numpy(), arrays["reward"].astype(np.float32))
    assert batch.end_BT[0].nonzero().flatten().tolist() == [4, 9, 11]


def test_several_episodes_are_recorded_one_after_the_other() -> None:
    env = EnvConfig(frame_cap=200)
    one, three = demo.record("Freeway", env, 1), demo.record("Freeway", env, 1, episodes=3)
    n = len(one["action"])
    assert len(three["action"]) == 3 * n
    assert np.array_equal(three["obs"][:n], one["obs"])
    assert not np.array_equal(three["action"][n : 2 * n], one["action"])
