"""The C++ collector against its slow twin, and what is its own: threads, the caller's memory, bad calls, processes."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import ale_py
import cv2
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from storm_fast.config import EnvConfig
from storm_fast.envs import Collector, GymCollector, area, extension, open_collector
from storm_fast.envs.games import rom_path
from storm_fast.errors import InputError
from tests.envs.test_exact import assert_same, copy, play, random_actions

native = pytest.mark.skipif(extension() is None, reason="the C++ collector was not built")


@native
@pytest.mark.parametrize(
    ("game", "config"),
    [
        ("Pong", EnvConfig(num_envs=3, frame_cap=250)),
        ("Breakout", EnvConfig(num_envs=3, num_threads=2)),
        ("Breakout", EnvConfig(num_envs=3, noops=30)),
        ("Pong", EnvConfig(num_envs=2, noops=30, frame_cap=34)),  # which may end before the agent acts
        ("MsPacman", EnvConfig(num_envs=2, full_action_space=True)),  # its screen is drawn in turns
        ("Freeway", EnvConfig(num_envs=1, sticky=0.0)),
        ("Krull", EnvConfig(num_envs=2, frame_skip=1)),
        ("Amidar", EnvConfig(num_envs=2, frame_skip=3)),
        ("Qbert", EnvConfig(num_envs=2, frame_skip=7, sticky=0.9)),
        ("DoubleDunk", EnvConfig(num_envs=2, frame_cap=900)),  # draws random numbers while it is reset
        ("Berzerk", EnvConfig(num_envs=2, frame_cap=400)),  # likewise
        ("AirRaid", EnvConfig(num_envs=2)),  # ALE grays out what is left of a frame: odd palette values
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_equals_the_slow_twin_in_every_field(game: str, config: EnvConfig) -> None:
    ours, twin = Collector(game, config), GymCollector(game, config)
    assert np.array_equal(ours.reset(3), twin.reset(3))
    actions_TN = random_actions(250, config.num_envs, twin.num_actions)
    assert_same(play(ours, actions_TN), play(twin, actions_TN))


@native
def test_the_number_of_threads_changes_nothing() -> None:
    actions_TN = random_actions(150, 7, 4)
    runs = []
    for threads in (1, 2, 3, 16):
        collector = Collector("Breakout", EnvConfig(num_envs=7, num_threads=threads))
        collector.reset(1)
        runs.append(play(collector, actions_TN))
    for run in runs[1:]:
        assert_same(run, runs[0])


@native
def test_what_a_worker_throws_reaches_the_caller_and_leaves_the_games_usable(tmp_path: Path) -> None:
    rom = tmp_path / rom_path("Pong").name
    shutil.copy(rom_path("Pong"), rom)
    module = extension()
    assert module is not None
    games = module.Collector(
        rom=str(rom), num_envs=4, num_threads=3, sticky=0.25, full_action_space=False, frame_skip=4, frame_cap=108_000,
        rows=64, columns=64, gray=False,
    )  # fmt: skip
    obs_NYXP, terminal_NYXP = np.zeros((2, 4, 64, 64, 3), np.uint8)
    games.reset([1, 2, 3, 4], obs_NYXP)
    first_NYXP = obs_NYXP.copy()
    rom.rename(rom.with_suffix(".away"))
    for _ in range(20):  # sometimes a worker is the first to throw, sometimes the caller
        with pytest.raises(RuntimeError, match=r"want a readable ROM; got .*pong.bin"):
            games.reset([1, 2, 3, 4], obs_NYXP)
    games.send(np.zeros(4, np.int64), obs_NYXP, terminal_NYXP)
    games.recv()
    rom.with_suffix(".away").rename(rom)
    games.reset([1, 2, 3, 4], obs_NYXP)
    assert np.array_equal(obs_NYXP, first_NYXP)


@native
@pytest.mark.parametrize(
    ("game", "size", "gray"),
    [
        ("Pong", (84, 84), False),
        ("Pong", (64, 64), True),
        ("Pong", (105, 80), True),
        ("Pong", (210, 160), False),
        ("MsPacman", (64, 64), True),
        ("AirRaid", (64, 64), False),  # odd palette values
        ("AirRaid", (64, 64), True),
        ("Breakout", (84, 84), True),
    ],
)
def test_other_sizes_and_gray_equal_a_pipeline_with_opencv(game: str, size: tuple[int, int], gray: bool) -> None:
    ours, twin = (
        Collector(game, EnvConfig(sticky=0.0), size=size, gray=gray),
        GymCollector(game, EnvConfig(sticky=0.0)),
    )
    ours.reset(0)
    twin.reset(0)
    ale = twin.envs[0].ale
    for action_N in random_actions(80, 1, ours.num_actions):
        obs_YXP = ours.step(action_N).obs_NYXP[0]
        frames = []
        for _ in range(4):
            ale.act(twin.envs[0]._action_set[action_N[0]])
            frames.append(ale.getScreenGrayscale() if gray else ale.getScreenRGB())
        want = cv2.resize(np.maximum(*frames[-2:]), size[::-1], interpolation=cv2.INTER_AREA).reshape(obs_YXP.shape)
        # OpenCV's own arithmetic is float at sizes where ties occur.
        assert np.abs(obs_YXP.astype(int) - want.astype(int)).max() <= (0 if size in ((64, 64), (210, 160)) else 1)


@native
def test_writes_into_the_callers_memory_through_its_strides() -> None:
    config = EnvConfig(num_envs=3)
    ours, twin = Collector("Breakout", config), GymCollector("Breakout", config)
    ring_TNYXP = torch.full((4, 3, 64, 64, 3), 7, dtype=torch.uint8)
    apart_NYXP = np.full((6, 64, 64, 3), 9, np.uint8)[::2]
    ours.reset(0, out=ring_TNYXP[0])
    assert np.array_equal(ring_TNYXP[0].numpy(), twin.reset(0))
    for t, action_N in enumerate(random_actions(60, 3, 4), 1):
        out: Any = apart_NYXP if t % 4 == 0 else ring_TNYXP[t % 4]
        steps, want = ours.step(action_N, out), twin.step(action_N)
        assert np.shares_memory(steps.obs_NYXP, apart_NYXP if t % 4 == 0 else ring_TNYXP.numpy())
        assert np.array_equal(steps.obs_NYXP, want.obs_NYXP)
    assert (apart_NYXP.base[1::2] == 9).all()  # what lies between the frames is not touched


@native
def test_a_buffer_is_held_from_send_to_recv_and_then_let_go() -> None:
    module = extension()
    assert module is not None
    ours = module.Collector(**arguments())
    shown, last = np.zeros((2, 64, 64, 3), np.uint8), np.zeros((2, 64, 64, 3), np.uint8)
    ours.reset([1, 2], shown)
    before = sys.getrefcount(shown)
    ours.send(np.zeros(2, np.int64), shown, last)
    assert sys.getrefcount(shown) == before + 1
    ours.recv()
    assert sys.getrefcount(shown) == before


@pytest.mark.gpu
@native
def test_writes_into_pinned_memory() -> None:
    pinned = torch.zeros(2, 64, 64, 3, dtype=torch.uint8, pin_memory=True)
    ours, twin = (kind("Pong", EnvConfig(num_envs=2)) for kind in (Collector, GymCollector))
    ours.reset(0, out=pinned)
    assert np.array_equal(pinned.cuda().cpu().numpy(), twin.reset(0))


@native
def test_a_buffer_dropped_by_its_owner_is_kept_until_recv() -> None:
    config = EnvConfig(num_envs=2, num_threads=2)
    ours, twin = Collector("Pong", config), GymCollector("Pong", config)
    ours.reset(0)
    twin.reset(0)
    for action_N in random_actions(40, 2, 6):
        ours.send(action_N, out=torch.empty(2, 64, 64, 3, dtype=torch.uint8))
        np.ones(2 * 64 * 64 * 3, np.uint8)  # would take the place of a freed one
        assert_same([copy(ours.recv())], [copy(twin.step(action_N))])


def shrunk(nbytes: int) -> torch.Tensor:
    """A tensor that claims more than its storage still holds."""
    tensor = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    tensor.untyped_storage().resize_(nbytes)
    return tensor


BAD_OUT: list[Any] = [
    shrunk(100),
    shrunk(0),
    np.zeros((2, 64, 64, 3), np.int8),
    np.zeros((2, 64, 64, 3), np.float32),
    np.zeros((2, 64, 64, 4), np.uint8)[..., :3],
    np.zeros((64, 2, 64, 3), np.uint8).swapaxes(0, 1),
    np.zeros((2, 64, 64, 3), np.uint8)[:, ::-1],
    np.broadcast_to(np.zeros((1, 64, 64, 3), np.uint8), (2, 64, 64, 3)),
    np.lib.stride_tricks.as_strided(np.zeros(64 * 64 * 3 + 9, np.uint8), (2, 64, 64, 3), (9, 192, 3, 1)),
    np.zeros((2, 64, 64, 3), np.uint8)[::-1],
    np.zeros((1, 64, 64, 3), np.uint8),
    np.zeros(0, np.uint8),
    torch.zeros(2, 64, 64, 3),
    torch.zeros(2, 64, 64, 3, dtype=torch.uint8, device="meta"),
    torch.zeros(2, 3, 64, 64, dtype=torch.uint8).permute(0, 2, 3, 1),
    bytearray(2 * 64 * 64 * 3),
    "out",
]


@native
def test_memory_that_does_not_fit_raises_before_any_game_steps() -> None:
    config = EnvConfig(num_envs=2)
    ours, twin = Collector("Pong", config), GymCollector("Pong", config)
    ours.reset(0)
    twin.reset(0)
    for out in BAD_OUT:
        with pytest.raises(ValueError, match=r"want out, writable uint8 \[2, 64, 64, 3\] in host memory"):
            ours.send(np.zeros(2, np.int64), out)
    read_only = np.zeros((2, 64, 64, 3), np.uint8)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="got read-only"):
        ours.send(np.zeros(2, np.int64), read_only)
    actions_TN = random_actions(30, 2, 6)
    assert_same(play(ours, actions_TN), play(twin, actions_TN))


def arguments(num_envs: int = 2, **changed: Any) -> dict[str, Any]:
    """Of the extension's own constructor."""
    return {
        "rom": str(rom_path("Pong")),
        "num_envs": num_envs,
        "num_threads": 2,
        "sticky": 0.25,
        "full_action_space": False,
        "frame_skip": 4,
        "frame_cap": 108_000,
        "rows": 64,
        "columns": 64,
        "gray": False,
    } | changed


@native
@pytest.mark.parametrize(
    "changed",
    [
        {"rom": "missing.bin"},
        {"rom": "/"},
        {"rom": __file__},
        {"num_envs": 0},
        {"num_threads": 0},
        {"sticky": 1.0},
        {"sticky": float("nan")},
        {"sticky": 0.9999999},  # 1 where ALE writes it down
        {"frame_skip": 0},
        {"frame_cap": 3},
        {"noops": -1},
        {"rows": 0},
        {"rows": 211},
        {"columns": 161},
        {"columns": -1},
    ],
    ids=str,
)
def test_impossible_settings_raise(changed: dict[str, Any]) -> None:
    module = extension()
    assert module is not None
    with pytest.raises(ValueError, match="want"):
        module.Collector(**arguments(**changed))


@native
@pytest.mark.parametrize("sticky", [0.0, 0.1, 0.25, 1 / 3, 0.12345678, 0.999])
def test_sticky_is_the_probability_that_ale_holds(sticky: float) -> None:
    module = extension()
    assert module is not None
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", sticky)
    assert module.Collector(**arguments(sticky=sticky)).sticky == ale.getFloat("repeat_action_probability")


@native
def test_after_bare_emulation_a_reset_is_asked_for_and_starts_afresh() -> None:
    module = extension()
    assert module is not None
    ours, fresh = (module.Collector(**arguments()) for _ in range(2))
    shown, last = np.zeros((2, 2, 64, 64, 3), np.uint8)
    ours.reset([1, 2], shown)
    ours.emulate([0, 1] * 10, 10)
    for early in (lambda: ours.send(np.zeros(2, np.int64), shown, last), ours.save):
        with pytest.raises(RuntimeError, match=r"want reset\(\) before"):
            early()
    for games in (ours, fresh):
        games.reset([1, 2], shown)
        games.send(np.zeros(2, np.int64), shown, last)
        games.recv()
    assert ours.save() == fresh.save()


FRAMES, DENSE = (2, 64, 64, 3), (64 * 64 * 3, 64 * 3, 3, 1)  # shape and strides of what two games draw
MEMORY = np.zeros(2**22, np.uint8)  # which malformed views look into, from its middle
DTYPES = ("uint8", "int8", "bool", "uint16", "int32", "int64", "uint64", "float32", "complex64", "datetime64[s]", "U1")


class Actions(NamedTuple):
    """An array of actions: its values one after another, every `step`th of an array."""

    dtype: str
    shape: tuple[int, ...]
    step: int
    values: tuple[int, ...]

    def is_good(self, raw: bool) -> bool:
        """Whether these are two actions of Pong; the extension itself takes two dtypes."""
        integer = self.dtype in (("int32", "int64") if raw else ("uint8", "int8", "uint16", "int32", "int64", "uint64"))
        return integer and self.shape == (2,) and all(0 <= value < 6 for value in self.values)

    def made(self) -> Any:
        """The array."""
        kind = "int64" if self.dtype in ("U1", "datetime64[s]", "complex64") else self.dtype
        values = np.array(self.values, object).astype(kind).astype(self.dtype).reshape(self.shape)
        return values if not values.ndim else np.repeat(values, abs(self.step), 0)[:: self.step]


class View(NamedTuple):
    """An array of frames, somewhere in MEMORY."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    is_writable: bool

    def is_good(self) -> bool:
        """Whether two games may draw there."""
        fits = self.dtype == "uint8" and self.shape == FRAMES and self.is_writable
        return fits and self.strides[1:] == DENSE[1:] and self.strides[0] >= DENSE[0]

    def made(self) -> Any:
        """The array."""
        half = MEMORY[len(MEMORY) // 2 :].view(self.dtype)
        strides = [step * half.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(half, self.shape, strides, writeable=self.is_writable)


class Shrunk(NamedTuple):
    """A torch tensor of two games' frames whose storage was cut, or freed."""

    nbytes: int

    def made(self) -> Any:
        """The tensor."""
        return shrunk(self.nbytes)


class Released(NamedTuple):
    """A view of bytes whose owner took them back."""

    nbytes: int

    def made(self) -> Any:
        """The view, which holds nothing."""
        view = memoryview(bytearray(self.nbytes))
        view.release()
        return view


class Thing(NamedTuple):
    """What is no array at all."""

    value: Any

    def made(self) -> Any:
        """As it is."""
        return self.value


def shape(random: Random, longest: int) -> tuple[int, ...]:
    """Of up to four axes."""
    return tuple(random.randint(0, longest) for _ in range(random.randrange(5)))


def view(random: Random) -> View:
    """An array of frames, of which dtype, shape, strides may be anything."""
    axes = FRAMES if random.random() < 0.6 else shape(random, 70)
    strides = tuple(int(np.prod(axes[axis + 1 :])) for axis in range(len(axes)))
    if random.random() < 0.5:
        reach = (13_000, 300, 9, 3)
        strides = tuple(random.randint(-reach[axis], reach[axis]) for axis in range(len(axes)))
    dtype = random.choice(DTYPES[:9]) if random.random() < 0.5 else "uint8"
    return View(dtype, axes, strides, random.random() < 0.8)


def actions(random: Random) -> Actions:
    """Of any dtype, shape, stride and values."""
    dtype = random.choice(DTYPES)
    axes = (2,) if random.random() < 0.6 else shape(random, 4)
    low, high = (0, 120) if dtype[0] in "ubU" else (-(2**62), 2**62) if dtype == "int64" else (-120, 120)
    values = tuple(random.randint(low, high) for _ in range(int(np.prod(axes))))
    return Actions(dtype, axes, random.choice((1, 2, -1, -3)), values)


def thing(random: Random) -> Thing:
    """A number, bytes, a text, a list."""
    number, some = random.randint(-(2**70), 2**70), random.randbytes(random.randrange(9))
    return Thing(random.choice((number, random.random(), some, some.hex(), [6 + byte for byte in some])))


def no_frames(random: Random) -> Any:
    """Anything but two games' frames."""
    given = random.choice((view, view, thing, lambda random: Released(random.randint(0, 9000))))(random)
    return no_frames(random) if isinstance(given, View) and given.is_good() else given


def no_actions(random: Random, raw: bool) -> Any:
    """Anything but two actions."""
    given = random.choice((actions, actions, thing))(random)
    return no_actions(random, raw) if isinstance(given, Actions) and given.is_good(raw) else given


FRAME_BYTES = int(np.prod(FRAMES))

CALLS: dict[str, Callable[[Random], Any]] = {
    "shown": no_frames,
    "last": no_frames,
    "reset": no_frames,
    "out": no_frames,
    "out, shrunk": lambda random: Shrunk(random.randrange(FRAME_BYTES)),
    "overlap": lambda random: random.randint(1 - FRAME_BYTES, FRAME_BYTES - 1),
    "raw actions": lambda random: no_actions(random, raw=True),
    "actions": lambda random: no_actions(random, raw=False),
    "seeds": lambda random: [random.getrandbits(31)] * random.choice((0, 1, 3, 4)),
    "states": lambda random: [random.randbytes(random.randrange(30)) for _ in range(random.randrange(4))],
}


@native
def test_ten_thousand_malformed_calls_end_in_an_exception_each_and_change_nothing() -> None:
    module = extension()
    assert module is not None
    ours = module.Collector(**arguments())
    twin = GymCollector("Pong", EnvConfig(num_envs=2))
    good_N = np.zeros(2, np.int64)
    shown, last = np.zeros((2, *FRAMES), np.uint8)
    ours.reset([1, 2], shown)
    twin.reset(0)
    wrapped = Collector("Pong", EnvConfig(num_envs=2))
    wrapped.reset(0)
    before, frames = ours.save(), shown.copy()
    middle = MEMORY[len(MEMORY) // 2 :]

    def overlap(shift: int) -> None:
        at = [middle[start : start + FRAME_BYTES].reshape(FRAMES) for start in (FRAME_BYTES, FRAME_BYTES + shift)]
        ours.send(good_N, *at)

    attempts: dict[str, Callable[[Any], Any]] = {
        "shown": lambda given: ours.send(good_N, given.made(), last),
        "last": lambda given: ours.send(good_N, shown, given.made()),
        "reset": lambda given: ours.reset([1, 2], given.made()),
        "out": lambda given: wrapped.send(good_N, given.made()),
        "out, shrunk": lambda given: wrapped.send(good_N, given.made()),
        "overlap": overlap,
        "raw actions": lambda given: ours.send(given.made(), shown, last),
        "actions": lambda given: wrapped.send(given.made()),
        "seeds": lambda seeds: ours.reset(seeds, shown),
        "states": ours.restore,
    }
    made = set()

    @hypothesis.settings(max_examples=200, database=None, deadline=None)
    @hypothesis.given(st.randoms(use_true_random=True))  # 60 draws of hypothesis's own would take half a second
    def call(random: Random) -> None:
        for name in random.choices(list(CALLS), k=60):
            given = CALLS[name](random)
            made.add((name, repr(given)))
            with pytest.raises((ValueError, TypeError)):
                attempts[name](given)

    call()
    assert len(made) >= 10_000
    assert ours.save() == before
    assert np.array_equal(shown, frames)
    assert not MEMORY.any()
    actions_TN = random_actions(20, 2, 6)
    assert_same(play(wrapped, actions_TN), play(twin, actions_TN))


@native
def test_calls_out_of_turn_raise() -> None:
    module = extension()
    assert module is not None
    ours = module.Collector(**arguments())
    shown, last = np.zeros((2, 2, 64, 64, 3), np.uint8)
    for early in (lambda: ours.send(np.zeros(2, np.int64), shown, last), ours.save):
        with pytest.raises(RuntimeError, match=r"want reset\(\) before"):
            early()
    ours.reset([1, 2], shown)
    with pytest.raises(ValueError, match=r"want send\(\) before recv\(\)"):
        ours.recv()
    ours.send(np.zeros(2, np.int64), shown, last)
    with pytest.raises(ValueError, match=r"want recv\(\) after send\(\)"):
        ours.send(np.zeros(2, np.int64), shown, last)
    with pytest.raises(ValueError, match="a step is under way"):
        ours.save()
    ours.recv()
    with pytest.raises(ValueError, match="observations and terminals apart"):
        ours.send(np.zeros(2, np.int64), shown, shown)
    ours.send(np.zeros(2, np.int64), shown, last)
    ours.reset([1, 2], shown)  # which gives up the step under way


@native
def test_damaged_or_foreign_states_raise() -> None:
    collector = Collector("Pong", EnvConfig())
    collector.reset(0)
    state = collector.state_dict()
    flipped = state | {"games": [state["games"][0].copy()]}
    flipped["games"][0][-5] ^= 1
    cut = state | {"games": [state["games"][0][:-9]]}
    empty = state | {"games": [np.zeros(0, np.uint8)]}
    for damaged in (flipped, cut, empty):
        with pytest.raises(ValueError, match="none, or are damaged"):
            collector.load_state_dict(damaged)
    with pytest.raises(ValueError, match="that of another ROM"):
        Collector("Breakout", EnvConfig()).load_state_dict(state)
    twin = GymCollector("Pong", EnvConfig())
    with pytest.raises(InputError, match="want the state of GymCollector; got that of Collector"):
        twin.load_state_dict(state)


@native
def test_a_state_of_which_one_game_is_damaged_changes_none() -> None:
    ours, twin = (Collector("Pong", EnvConfig(num_envs=2)) for _ in range(2))
    ours.reset(0)
    twin.reset(0)
    ours_TN = random_actions(30, 2, 6)
    state = ours.state_dict()
    play(ours, ours_TN)
    play(twin, ours_TN)
    half = state | {"games": [state["games"][0], state["games"][1][:-3]]}
    misshapen = state | {"obs": state["obs"][:1]}
    for bad in (half, misshapen):
        with pytest.raises(ValueError, match="want"):
            ours.load_state_dict(bad)
    assert_same(play(ours, ours_TN), play(twin, ours_TN))


@native
def test_a_second_python_thread_is_turned_away() -> None:
    collector = Collector("Pong", EnvConfig(num_envs=64, num_threads=1))
    collector.reset(0)
    begun, errors = threading.Event(), []

    def step() -> None:
        for _ in range(20):
            collector.send(np.zeros(64, np.int64))
            begun.set()
            collector.recv()

    thread = threading.Thread(target=step)
    thread.start()
    begun.wait()
    while thread.is_alive():
        try:
            collector.state_dict()
        except (RuntimeError, ValueError) as error:  # inside, or between send and recv
            errors.append(str(error))
    thread.join()
    assert any("one Python thread at a time" in error for error in errors)
    collector.step(np.zeros(64, np.int64))


@native
def test_more_threads_than_games_are_not_started() -> None:
    assert Collector("Pong", EnvConfig(num_envs=2, num_threads=1000)).num_threads == 2


@native
@pytest.mark.parametrize("rows", [210, 214, 220, 230, 250])
@pytest.mark.parametrize("size", [(64, 64), (84, 84), (63, 50)])
def test_the_picture_of_random_screens_is_the_slow_twins_afresh_and_after_changes(
    rows: int, size: tuple[int, int]
) -> None:
    module = extension()
    assert module is not None
    random = np.random.default_rng(rows)
    palette = random.integers(0, 256, (256, 3), dtype=np.uint8)
    lanes = palette.astype(np.uint64) @ (np.uint64(1) << np.array([0, 16, 32], np.uint64))
    picture = module.Picture(rows, 160, *size, lanes.tolist())
    screens = random.integers(0, 256, (2, rows, 160), dtype=np.uint8)
    for change in range(30):
        got = picture.draw(screens[0].tobytes(), screens[1].tobytes())
        want = area.resize(palette[screens].max(0), *size)
        assert np.array_equal(got, want)
        if size == (64, 64):
            assert np.array_equal(got, cv2.resize(palette[screens].max(0), size, interpolation=cv2.INTER_AREA))
        for _ in range(change % 4):  # some pixels of one of the two, the picture keeping what it knows of the rest
            y, x = random.integers(0, rows), random.integers(0, 160)
            screens[random.integers(2), y : y + 3, x : x + random.integers(1, 9)] ^= 2
        if change % 5 == 0:
            screens = screens[::-1].copy()


@native
def test_a_collector_dropped_in_mid_step_leaves_no_thread_behind() -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else threading.active_count()

    before = threads()
    for _ in range(20):
        collector = Collector("Pong", EnvConfig(num_envs=4, num_threads=4))
        collector.reset(0)
        collector.send(np.zeros(4, np.int64))
        del collector
    assert threads() == before


@native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_a_fork_the_child_is_told_and_ends_and_the_parent_goes_on() -> None:
    code = """
import os, sys, numpy as np
from storm_fast.envs import Collector
from storm_fast.config import EnvConfig
c = Collector("Pong", EnvConfig(num_envs=2, num_threads=2))
c.reset(0)
c.send(np.zeros(2, np.int64))
child = os.fork()
if child == 0:
    try:
        c.recv()
    except RuntimeError as error:
        assert "made before fork" in str(error)
        del c
        sys.exit(7)
    sys.exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
c.recv()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@native
def test_ctrl_c_ends_a_loop_of_steps_at_once() -> None:
    # A shell may start its background jobs with the signal ignored, which children inherit.
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
from storm_fast.envs import Collector
from storm_fast.config import EnvConfig
c = Collector("Pong", EnvConfig(num_envs=8, num_threads=2))
c.reset(0)
print("ready", flush=True)
try:
    while True:
        c.step(np.zeros(8, np.int64))
except KeyboardInterrupt:
    c.reset(0)
    print("stopped", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "stopped\n")


@native
def test_other_threads_run_while_games_step() -> None:
    collector = Collector("Pong", EnvConfig(num_envs=64, num_threads=1))
    collector.reset(0)
    ticks, done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0)

    thread = threading.Thread(target=tick)
    thread.start()
    collector.send(np.zeros(64, np.int64))
    start = ticks
    collector.recv()
    during = ticks - start
    done.set()
    thread.join()
    assert during > 1  # with the GIL held throughout, at most the switch before the call


@native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_worker_threads_take_no_signals() -> None:
    def tasks() -> set[str]:
        return set(os.listdir("/proc/self/task"))

    before = tasks()
    collector = Collector("Pong", EnvConfig(num_envs=3, num_threads=3))
    workers = tasks() - before
    assert len(workers) == collector.num_threads - 1
    catchable = sum(1 << number - 1 for number in range(1, 32) if number not in (signal.SIGKILL, signal.SIGSTOP))
    for worker in workers:
        status = Path(f"/proc/self/task/{worker}/status").read_text()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        assert blocked & catchable == catchable
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])  # those of the calling thread are as they were


@native
def test_ctrl_c_inside_recv_leaves_the_games_usable_while_another_thread_waits_for_them() -> None:
    code = """
import os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
from storm_fast.envs import Collector
from storm_fast.config import EnvConfig
c = Collector("Pong", EnvConfig(num_envs=8, num_threads=2))
c.reset(0)
turned_away, done = [], threading.Event()

def wait():
    while not done.is_set():
        try:
            c.state_dict()
        except RuntimeError as error:  # the main thread is inside
            turned_away.append(str(error))
            if len(turned_away) == 5:
                os.kill(os.getpid(), signal.SIGINT)
        except ValueError:  # it is between send and recv
            pass

other = threading.Thread(target=wait, daemon=True)
try:
    other.start()
    while True:
        try:
            c.send(np.zeros(8, np.int64))
            c.recv()
        except (RuntimeError, ValueError):  # the other thread was inside
            pass
except KeyboardInterrupt:
    pass
done.set()
other.join()
assert len(turned_away) >= 5
c.reset(0)
fresh = Collector("Pong", EnvConfig(num_envs=8))
fresh.reset(0)
a, b = c.step(np.ones(8, np.int64)), fresh.step(np.ones(8, np.int64))
assert all(np.array_equal(x, y) for x, y in zip(a, b))
print("usable", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "usable\n"), done.stderr


@native
@pytest.mark.parametrize(
    ("config", "gray"),
    [
        (EnvConfig(num_envs=2, frame_skip=1, frame_cap=150), False),
        (EnvConfig(num_envs=2, frame_skip=5, full_action_space=True), True),
        (EnvConfig(num_envs=2, sticky=0.6, full_action_space=True, num_threads=2), False),
    ],
    ids=["skip 1", "skip 5, gray, full", "full, sticky 0.6"],
)
@pytest.mark.parametrize("game", ["Breakout", "MsPacman"])
def test_what_is_restored_goes_on_as_saved_at_other_settings(game: str, config: EnvConfig, gray: bool) -> None:
    ours, other = (Collector(game, config, gray=gray) for _ in range(2))
    ours.reset(3)
    other.reset(4)
    actions_TN = random_actions(200, 2, ours.num_actions)
    play(ours, actions_TN[:61])
    other.load_state_dict(ours.state_dict())
    assert np.array_equal(other.obs_NYXP, ours.obs_NYXP)
    assert_same(play(other, actions_TN[61:]), play(ours, actions_TN[61:]))


@native
def test_the_sources_are_of_the_ale_that_is_installed() -> None:
    module = extension()
    assert module is not None
    assert module.ale_version == ale_py.__version__


def test_a_collector_can_be_asked_for_by_name() -> None:
    for kind, name in (("gym", "GymCollector"), ("ale_vector", "AleVectorCollector")):
        assert type(open_collector("Pong", EnvConfig(collector=kind))).__name__ == name  # type: ignore[arg-type]
    wanted = "AleVectorCollector" if extension() is None else "Collector"
    assert type(open_collector("Pong", EnvConfig())).__name__ == wanted


def test_without_the_extension_the_fallback_serves_and_the_native_one_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("storm_fast.envs.extension", lambda: None)
    monkeypatch.setattr("storm_fast.envs.native.extension", lambda: None)
    assert type(open_collector("Pong", EnvConfig())).__name__ == "AleVectorCollector"
    with pytest.raises(InputError, match="installed without it"):
        open_collector("Pong", EnvConfig(collector="native"))
