"""Demonstration files: what `load` accepts and refuses, what `to_replay` keeps."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from storm_fast.data import demonstration as demo
from storm_fast.envs import EnvSpec, open_collector
from storm_fast.errors import InputError

NUM_ACTIONS, LENGTH = 3, 8
SPEC = EnvSpec("nothing to play", NUM_ACTIONS, open=open_collector)  # type: ignore[arg-type]  # never opened
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


@pytest.mark.parametrize("n", [LENGTH, 12])
@pytest.mark.parametrize("action_type", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("reward_type", [np.float32, np.float64])
def test_a_valid_file_loads_as_it_was_written(tmp_path: Path, n: int, action_type: type, reward_type: type) -> None:
    arrays = valid(n)
    arrays["action"] = arrays["action"].astype(action_type)
    arrays["reward"] = arrays["reward"].astype(reward_type)
    loaded = demo.load(save(tmp_path / "demo.npz", arrays), SPEC, LENGTH)
    assert set(loaded) == set(NAMES)
    for name in NAMES:
        assert np.array_equal(loaded[name], arrays[name])
        assert loaded[name].dtype == arrays[name].dtype


def test_further_arrays_are_left_out(tmp_path: Path) -> None:
    loaded = demo.load(save(tmp_path / "demo.npz", valid() | {"note": np.zeros(3)}), SPEC, LENGTH)
    assert set(loaded) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_array_raises(tmp_path: Path, name: str) -> None:
    arrays = valid()
    del arrays[name]
    with pytest.raises(InputError, match=rf"want arrays .*{name}.* in .*demo\.npz; got (?!.*\b{name}\b)"):
        demo.load(save(tmp_path / "demo.npz", arrays), SPEC, LENGTH)


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
        demo.load(save(tmp_path / "demo.npz", valid() | {name: np.asarray(array)}), SPEC, LENGTH)


def test_actions_that_are_one_number_raise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"demo\.npz"):
        demo.load(save(tmp_path / "demo.npz", valid() | {"action": np.array(1)}), SPEC, LENGTH)


@pytest.mark.parametrize("n", [0, 1, LENGTH - 1])
def test_less_than_one_window_raises(tmp_path: Path, n: int) -> None:
    with pytest.raises(InputError, match=rf"want at least {LENGTH} steps.*demo\.npz; got {n}"):
        demo.load(save(tmp_path / "demo.npz", valid(n)), SPEC, LENGTH)


@pytest.mark.parametrize("action", [NUM_ACTIONS, 17, -1])
def test_an_action_out_of_range_raises_and_is_named(tmp_path: Path, action: int) -> None:
    arrays = valid()
    arrays["action"][4] = action
    with pytest.raises(InputError, match=rf"want actions in \[0, {NUM_ACTIONS}\).*; got .*{action}\b"):
        demo.load(save(tmp_path / "demo.npz", arrays), SPEC, LENGTH)


@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_raises(tmp_path: Path, reward: float) -> None:
    arrays = valid()
    arrays["reward"][4] = reward
    with pytest.raises(InputError, match=r"want finite rewards in .*demo\.npz"):
        demo.load(save(tmp_path / "demo.npz", arrays), SPEC, LENGTH)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off", b"\x80\x04N."])
def test_a_file_that_is_no_zip_raises(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "demo.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"want a demonstration \.npz .*demo\.npz"):
        demo.load(path, SPEC, LENGTH)


def test_a_file_that_does_not_exist_and_a_folder_raise(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(InputError, match=rf"want a demonstration \.npz .*{path.name}"):
            demo.load(path, SPEC, LENGTH)


def test_a_single_saved_array_raises(tmp_path: Path) -> None:
    np.save(tmp_path / "demo.npy", np.zeros(12))
    with pytest.raises(InputError, match=r"demo\.npy"):
        demo.load(tmp_path / "demo.npy", SPEC, LENGTH)


def test_a_file_cut_short_raises(tmp_path: Path) -> None:
    path = save(tmp_path / "demo.npz", valid())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"want a demonstration \.npz .*demo\.npz"):
        demo.load(path, SPEC, LENGTH)


@pytest.mark.parametrize("value", [0x00, 0xFF])
def test_a_file_damaged_inside_an_array_raises(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "demo.npz", valid())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inside = archive.getinfo("obs.npy").header_offset + 200
    path.write_bytes(whole[:inside] + bytes([value]) * 2000 + whole[inside + 2000 :])
    with pytest.raises(InputError, match=r"want a demonstration \.npz .*demo\.npz"):
        demo.load(path, SPEC, LENGTH)


@pytest.mark.parametrize("name", ["reward", "note"])
def test_pickled_objects_raise_and_are_not_unpickled(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "unpickled",)

    objects = np.array([Trap()] * 12, dtype=object)
    with pytest.raises(InputError, match=r"want a demonstration \.npz .*demo\.npz: .*allow_pickle"):
        demo.load(save(tmp_path / "demo.npz", valid() | {name: objects}), SPEC, LENGTH)
    assert not (tmp_path / "unpickled").exists()


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
