"""Any gymnasium environment with pictures: what fits, what its collector gives, and a whole run on it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from storm_fast import evaluate, report, train
from storm_fast.config import EnvConfig
from storm_fast.data import demonstration
from storm_fast.envs import PictureCollector, area, describe
from storm_fast.errors import InputError
from tests.small import flags

MODULE = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Counter(gymnasium.Env):
    '''Each step's picture is a shade of its number. Episodes last three steps; five where the first action is 3.'''

    action_space = spaces.Discrete(3, start=2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, render_mode=None, shape=(96, 128, 3), dtype=np.uint8):
        self.render_mode, self.shape = render_mode, shape
        self.observation_space = spaces.Box(0, 255, shape, dtype)

    def picture(self):
        y = np.arange(self.shape[0]).reshape(-1, *[1] * (len(self.shape) - 1))
        return np.broadcast_to((y + 40 * self.at) % 256, self.shape).astype(self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.last = 0, 3
        return self.picture(), {}

    def step(self, action):
        assert self.action_space.contains(int(action)), action
        if self.at == 0 and action == 3:
            self.last = 5
        self.at += 1
        return self.picture(), float(action), self.at == 3 == self.last, self.at == 5, {}

    def render(self):
        return np.full((64, 70, 3), 7 * self.at, np.uint8)

class Continuous(Counter):
    action_space = spaces.Box(-1, 1, (2,))

class Unseen(Counter):
    metadata = {"render_modes": ["human"]}

def add(name, kind=Counter, **kwargs):
    gymnasium.register(f"storm_fast_test/{name}-v0", kind, kwargs=kwargs)

add("Counter")
add("Gray", shape=(80, 64))
add("OneColour", shape=(64, 64, 1))
add("Numbers", shape=(4,), dtype=np.float32)
add("Tiny", shape=(7, 7, 3))
add("Continuous", Continuous)
add("Unseen", Unseen, shape=(4,), dtype=np.float32)

class Seeded(Counter):
    def picture(self):
        return self.np_random.integers(256, size=self.shape).astype(np.uint8)

class Broken(Counter):
    def __init__(self, render_mode=None):
        raise RuntimeError("no display")

class Floats(Counter):
    def render(self):
        return np.full((64, 70, 3), 0.5)

class NoPicture(Counter):
    def render(self):
        return None

class NoReset(Counter):
    def reset(self, *, seed=None, options=None):
        raise KeyError("level")

add("Seeded", Seeded)
add("Floats", Floats, shape=(4,), dtype=np.float32)
add("NoPicture", NoPicture, shape=(4,), dtype=np.float32)
add("NoReset", NoReset)
add("Broken", Broken)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that registers environments when it is imported."""
    (tmp_path / "counting_envs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "counting_envs"
    for name in [name for name in gymnasium.registry if name.startswith("storm_fast_test/")]:
        del gymnasium.registry[name]
    sys.modules.pop("counting_envs", None)


def named(name: str) -> str:
    return f"counting_envs:storm_fast_test/{name}-v0"


def shade(at: int, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What is seen of the picture `at` steps into an episode."""
    y = np.arange(shape[0]).reshape(-1, 1, 1)
    picture_YXP = np.broadcast_to((y + 40 * at) % 256, (*shape[:2], shape[2] if len(shape) == 3 else 1))
    return area.resize(picture_YXP.astype(np.uint8), 64, 64)


@pytest.mark.parametrize(("name", "shape"), [("Counter", (96, 128, 3)), ("Gray", (80, 64)), ("OneColour", (64, 64, 1))])
def test_observations_that_are_pictures_are_seen_shrunk(name: str, shape: tuple[int, ...]) -> None:
    spec = describe(named(name))
    assert (spec.name, spec.num_actions, spec.has_lives) == (named(name), 3, False)
    assert spec.frame == (64, 64, 3 if len(shape) == 3 and shape[2] == 3 else 1)
    collector = spec.open(EnvConfig())
    assert np.array_equal(collector.reset(0)[0], shade(0, shape))
    assert np.array_equal(collector.step(np.array([0])).obs_NYXP[0], shade(1, shape))


@pytest.mark.parametrize("name", ["Numbers", "Tiny"])
def test_others_are_seen_as_they_are_rendered(name: str) -> None:
    collector = describe(named(name)).open(EnvConfig())
    assert (collector.reset(0) == 0).all()
    assert collector.obs_NYXP.shape == (1, 64, 64, 3)
    assert (collector.step(np.array([0])).obs_NYXP == 7).all()


@pytest.mark.parametrize("threads", [0, 2], ids=["one thread", "processes"])
def test_episodes_end_as_the_collectors_of_atari_have_it(threads: int) -> None:
    collector = PictureCollector(named("Counter"), EnvConfig(num_envs=2, num_threads=threads))
    out_NYXP = np.zeros((2, 64, 64, 3), np.uint8)
    collector.reset(3, out_NYXP)
    shape, seen = (96, 128, 3), []
    for step in range(1, 6):
        steps = collector.step(np.array([0, 1]), out_NYXP)
        assert np.shares_memory(steps.obs_NYXP, out_NYXP)
        assert steps.reward_N.tolist() == [2, 3]  # the environment's own numbers begin at 2
        assert not steps.life_lost_N.any()
        seen.append((steps.terminated_N.tolist(), steps.truncated_N.tolist()))
        if step == 3:
            assert np.array_equal(steps.terminal_obs_NYXP[0], shade(3, shape))
            assert np.array_equal(steps.obs_NYXP[0], shade(0, shape))
            assert (steps.episode_return_N[0], steps.episode_length_N[0]) == (6, 3)
        else:
            assert np.array_equal(steps.obs_NYXP[0], shade(step if step < 3 else step - 3, shape))
    assert [ends for ends, _ in seen] == [[False, False], [False, False], [True, False], [False, False], [False, False]]
    assert [cuts for _, cuts in seen] == [[False, False]] * 4 + [[False, True]]
    assert (steps.episode_return_N[1], steps.episode_length_N[1]) == (15, 5)
    # The counts begin anew with the episode.
    assert collector.step(np.array([0, 0])).episode_length_N.tolist() == [3, 1]


def test_a_state_that_is_restored_begins_new_episodes_and_says_so() -> None:
    collector, other = (PictureCollector(named("Counter"), EnvConfig()) for _ in range(2))
    collector.reset(0)
    collector.step(np.array([1]))
    assert collector.restored_exactly
    other.load_state_dict(collector.state_dict())
    assert not other.restored_exactly
    assert np.array_equal(other.obs_NYXP[0], shade(0, (96, 128, 3)))
    with pytest.raises(InputError, match="want the state of PictureCollector"):
        other.load_state_dict({"collector": "Collector"})
    with pytest.raises(InputError, match="want the state of 1 environments; got 2"):
        other.load_state_dict({"collector": "PictureCollector", "num_envs": 2, "seed": 0, "steps": 0})


def test_ctrl_c_is_left_to_the_trainer() -> None:
    # A terminal sends it to every process of the command.
    collector = PictureCollector(named("Counter"), EnvConfig(num_envs=2, num_threads=2))
    collector.reset(0)
    assert collector._apart is not None
    for process in collector._apart.processes:
        os.kill(process.pid, signal.SIGINT)
    assert collector.step(np.array([0, 0])).reward_N.tolist() == [2, 2]
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_new_episodes_after_a_resume_depend_on_where_it_was_stopped() -> None:
    seeds = []
    for steps in (0, 1, 2):
        collector = PictureCollector(named("Seeded"), EnvConfig())
        collector.reset(0)
        for _ in range(steps):
            collector.step(np.array([0]))
        collector.load_state_dict(collector.state_dict())
        seeds.append(int(collector.obs_NYXP.sum()))
    assert len(set(seeds)) == 3


def test_turns_out_of_order_raise() -> None:
    collector = PictureCollector(named("Counter"), EnvConfig())
    collector.reset(0)
    with pytest.raises(ValueError, match="got recv"):
        collector.recv()
    with pytest.raises(ValueError, match=r"want actions in \[0, 3\)"):
        collector.send(np.array([3]))
    collector.send(np.array([0]))
    with pytest.raises(ValueError, match="got a second send"):
        collector.send(np.array([0]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (named("Continuous"), r"want an --env with Discrete actions; .* has Box"),
        (named("Unseen"), r"in 1 or 3 colours, or that renders them \(rgb_array\); .* renders \['human'\]"),
        (named("Floats"), "want .* float64"),
        (named("NoPicture"), "want --env as gymnasium knows it"),
        (named("NoReset"), "want --env as gymnasium knows it.*KeyError: 'level'"),
        (named("Broken"), "want --env as gymnasium knows it.*RuntimeError: no display"),
        ("no_such_module:Some-v0", "want --env as gymnasium knows it.*ModuleNotFoundError"),
        ("NoSuchEnvironment-v0", "want --env as gymnasium knows it, `ID` or `module:ID`; NoSuchEnvironment-v0"),
        ("a bad:name of one:v0", "want --env as gymnasium knows it"),
    ],
)
def test_what_does_not_fit_raises_before_anything_is_written(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        train.parse(["--preset", "tiny", "--device", "cpu", "--env", name])
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--game", "Pong"], "want either --game or --env; got both, Pong and"),
        (["--sticky", "0", "--frame-skip", "2"], "want options of Atari with --game alone; got --sticky, --frame-skip"),
        (["--collector", "gym"], "got --collector and --env"),
        (["--env_id", "Other-v0", "--game=Pong"], "want either --game or --env; got both, Pong and Other-v0"),
        (["--env", ""], "want --env with the ID of an environment; got an empty one"),
        (["--demonstration", "scripted"], "want --demonstration none or a file.npz with --env"),
    ],
)
def test_options_that_only_atari_has_raise(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train.parse(["--preset", "tiny", "--device", "cpu", f"--env={named('Counter')}", *options])


@pytest.mark.parametrize(
    "name",
    [
        named("Gray"),
        pytest.param("minigrid:MiniGrid-Empty-5x5-v0", id="MiniGrid"),
        pytest.param("LunarLander-v3", id="LunarLander"),
        pytest.param("ale_py:ALE/Freeway-v5", id="ALE's own pictures"),
    ],
)
def test_a_run_is_trained_resumed_evaluated_and_reported(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package, prefix in (("minigrid", "minigrid"), ("Box2D", "Lunar")):
        if name.startswith(prefix):
            pytest.importorskip(package)
    run = tmp_path / "run"
    small = flags(game=None, frame_cap=None, collector=None, demonstration="auto", steps=48)
    assert train.main([*small, "--env", name, "--run-dir", str(run)]) == 0
    assert f"tiny: {name}, 48 steps" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["env_id"] == name
    assert train.main(["--resume", str(run), "--steps", "56"]) == 0
    assert f"{name} was not restored exactly" in capsys.readouterr().out
    with pytest.raises(InputError, match="want options of Atari with --game alone; got --collector"):
        train.parse(["--resume", str(run), "--collector", "gym"])
    assert evaluate.main([str(run), "--episodes", "2", "--num-envs", "2", "--device", "cpu"]) == 0
    result = json.loads((run / "eval" / "56.json").read_text())
    assert result["game"] == name
    assert result["human_normalised"] is None
    if name.startswith("counting"):
        assert 6 <= result["score"] <= 20
    page = tmp_path / "report.html"
    assert report.main([str(run), "--out", str(page)]) == 0
    assert name in page.read_text()


def test_a_command_ends_though_its_environments_draw_in_processes(tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    small = flags(game=None, frame_cap=None, collector=None, steps=40)
    command = [sys.executable, "-m", "storm_fast.train", *small, "--env", "CartPole-v1", "--num-threads", "2"]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_default_folder_is_named_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = train.parse(["--preset", "tiny", "--device", "cpu", "--env", named("Counter")])
    assert run.path.parent == Path("runs")
    assert run.path.name.startswith("counting_envs-storm_fast_test-Counter-v0-s1-")


def test_a_demonstration_has_the_environments_frames() -> None:
    spec = describe(named("Gray"))
    arrays: demonstration.Arrays = {
        "obs": np.zeros((9, 64, 64, 3), np.uint8),
        "action": np.zeros(9, np.int64),
        "reward": np.zeros(9, np.float32),
        "terminated": np.zeros(9, np.bool_),
        "life_loss": np.zeros(9, np.bool_),
    }
    with pytest.raises(InputError, match=r"want obs uint8 \[9, 64, 64, 1\]"):
        demonstration.check(arrays, "a file", spec, 4)
