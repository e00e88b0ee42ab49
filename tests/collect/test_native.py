"""The C++ collector against its slow twin, and what is its own: threads, the caller's memory, bad calls, processes."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ale_py
import cv2
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from storm_fast.collect import Collector, GymCollector, area, extension, open_collector
from storm_fast.collect.games import rom_path
from storm_fast.config import EnvConfig
from storm_fast.errors import InputError
from tests.collect.test_exact import assert_same, copy, play, random_actions

native = pytest.mark.skipif(extension() is None, reason="the C++ collector was not built")


@native
@pytest.mark.parametrize(
    ("game", "config"),
    [
        ("Pong", EnvConfig(num_envs=3, frame_cap=250)),
        ("Breakout", EnvConfig(num_envs=3, num_threads=2)),
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


DTYPES = st.sampled_from(
    [np.int64, np.int32, np.int8, np.uint8, np.uint64, np.float32, np.bool_, np.complex64, np.str_]
)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Anything but two good actions: other dtypes, shapes, strides, values, and what is no array at all."""
    if draw(st.booleans()):
        return draw(
            st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.lists(st.integers(0, 5)), st.floats())
        )
    if draw(st.booleans()):  # a buffer of frames, or nearly
        shape = draw(
            st.permutations([2, 64, 64, 3]) | st.sampled_from([[2, 64, 64, 4], [1, 64, 64, 3], [2, 64, 63, 3]])
        )
        frames = np.zeros(shape, draw(st.sampled_from([np.uint8, np.int8, np.float32])))
        fault = draw(st.sampled_from(["reversed", "narrow", "read-only", "turned"]))
        if fault == "reversed":
            return frames[:, ::-1]
        if fault == "narrow":
            return np.zeros((2, 64, 64, 5), np.uint8)[..., :3]
        if fault == "read-only":
            frames.flags.writeable = False
            return frames
        return np.zeros((2, 3, 64, 64), np.uint8).transpose(0, 2, 3, 1)
    array = np.zeros(draw(SHAPES), draw(DTYPES))
    if array.ndim and draw(st.booleans()):
        array = array[:: draw(st.sampled_from([-1, 2]))]
    if array.size and array.dtype == np.int64:
        array.flat[-1] = draw(st.sampled_from([-1, 6, 2**40, -(2**63)]))
    return array


def is_good(given: Any) -> bool:
    """Whether these are two actions of Pong."""
    actions = np.asarray(given)
    whole = actions.shape == (2,) and np.issubdtype(actions.dtype, np.integer)
    return bool(whole and (actions >= 0).all() and (actions < 6).all())


@native
def test_ten_thousand_malformed_calls_end_in_an_exception_each_and_change_nothing() -> None:
    module = extension()
    assert module is not None
    ours = module.Collector(**arguments())
    twin = GymCollector("Pong", EnvConfig(num_envs=2))
    shown, last = np.zeros((2, 2, 64, 64, 3), np.uint8)
    ours.reset([1, 2], shown)
    twin.reset(0)
    wrapped = Collector("Pong", EnvConfig(num_envs=2))
    wrapped.reset(0)
    calls = 0

    @hypothesis.settings(max_examples=2000, database=None)
    @hypothesis.given(arrays(), arrays(), st.sampled_from([8, 64, 63, 128]))
    def call(first: Any, second: Any, rows: int) -> None:
        nonlocal calls
        good = np.zeros(2, np.int64)
        wrong_frames = np.zeros((2, rows, 63, 3), np.uint8)
        attempts: list[Any] = [
            lambda: ours.send(good, second, last),
            lambda: ours.send(good, shown, wrong_frames),
            lambda: ours.reset([1, 2], second),
            lambda: ours.restore(second),
        ]
        if second is not None:  # which stands for the collector's own memory
            attempts.append(lambda: wrapped.send(good, second))
        if not is_good(first):
            attempts += [lambda: ours.send(first, shown, last), lambda: wrapped.send(first)]
        for attempt in attempts:
            calls += 1
            with pytest.raises((ValueError, TypeError)):
                attempt()

    call()
    assert calls >= 10_000
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
from storm_fast.collect import Collector
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
from storm_fast.collect import Collector
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
    monkeypatch.setattr("storm_fast.collect.extension", lambda: None)
    monkeypatch.setattr("storm_fast.collect.native.extension", lambda: None)
    assert type(open_collector("Pong", EnvConfig())).__name__ == "AleVectorCollector"
    with pytest.raises(InputError, match="installed without it"):
        open_collector("Pong", EnvConfig(collector="native"))
