"""The command line of training: bad input is status 2, says what was wanted and what came, and writes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storm_fast.config import PRESETS, preset
from storm_fast.runs.run import Run
from storm_fast.train import main, parse, train
from tests.small import flags, flip, rows, small_config, tree, weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 40 steps; tests that damage it put it back."""
    path = tmp_path_factory.mktemp("trained") / "run"
    train(Run(path, small_config(steps=40)), False)
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, where runs/ would appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Asserts that arguments give status 2, a message with all the given words, and that no file changes."""

    def check(argv: list[str], *words: str, folder: Path = here) -> None:
        before = tree(here), tree(folder)
        try:
            status: Any = main(argv)
        except SystemExit as stop:
            status = stop.code
        assert status == 2
        # The parser draws a box around its messages and breaks their lines.
        told = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert [word for word in words if word not in told] == [], told
        assert (tree(here), tree(folder)) == before

    return check


def demonstration(**changes: Any) -> dict[str, Any]:
    """Arrays of a demonstration file for any game, some replaced; None leaves one out."""
    n = 12
    arrays = {
        "obs": np.zeros((n, 64, 64, 3), np.uint8),
        "action": np.arange(n) % 3,
        "reward": np.zeros(n, np.float32),
        "terminated": np.zeros(n, bool),
        "life_loss": np.zeros(n, bool),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"game": "Pnog"}, ["want a game of ALE; got 'Pnog'", "did you mean Pong"]),
        ({"game": "space_invaders"}, ["got 'space_invaders'", "did you mean SpaceInvaders"]),
        ({"game": "pong"}, ["got 'pong'", "did you mean Pong"]),
        ({"game": ""}, ["want a game of ALE; got ''"]),
        ({"preset": "huge"}, ["want a preset of storm, paper, tiny, lean, plus; got 'huge'"]),
        ({"num-envs": 0}, ["want --num-envs of at least 1; got 0"]),
        ({"heads": 3}, ["want --width divisible by --heads; got (16, 3)"]),
        ({"heads": 0}, ["--heads"]),
        ({"critic-warmup": -1}, ["want --critic-warmup of at least 0; got -1"]),
        ({"steps": 0}, ["want --steps of at least 1; got 0"]),
        ({"steps": "many"}, ["--steps", "many"]),
        ({"warmup": 14}, ["want --warmup of at least 8 steps per environment", "got 14 over 2"]),
        ({"capacity": 15}, ["want --capacity of at least 8 steps per environment, a window; got 15"]),
        ({"device": "nonsense"}, ["want --device auto, cpu, cuda or cuda:<i>; got 'nonsense'"]),
        ({"device": "meta"}, ["want --device auto, cpu, cuda or cuda:<i>; got 'meta'"]),
        ({"precision": "fp64"}, ["fp64", "'bf16'"]),
        ({"demonstration": "scripted"}, ["want a game with a scripted policy (Freeway); got Breakout"]),
        ({"demonstration": "absent.npz"}, ["want a demonstration .npz", "absent.npz"]),
        ({"no-such-option": 1}, ["--no-such-option"]),
        ({"gam": 0.3}, ["--gam"]),
        ({"run-dir": None, "resume": "."}, ["want a run folder, with config.json and ckpt/; . is none"]),
        ({"run-dir": None, "resume": "absent"}, ["want a run folder", "absent is none"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    refused: Callable[..., None], changes: dict[str, Any], words: list[str]
) -> None:
    refused(flags(**({"run-dir": "run"} | changes)), *words)
    # Likewise where the folder's name is left to the program.
    refused(flags(**changes), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_refused(refused: Callable[..., None]) -> None:
    refused(flags(device="cuda"), "got 'cuda'", "0 CUDA devices", "--device cpu")


def test_an_existing_run_folder_is_refused(refused: Callable[..., None], here: Path, trained: Path) -> None:
    (here / "run").mkdir()
    (here / "run/notes.txt").write_text("mine")
    refused(flags(run_dir="run"), "want a folder that does not exist yet; run does", "--resume run")
    refused(flags(run_dir=trained), "does not exist yet", str(trained), folder=trained)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"obs": np.zeros((12, 64, 64), np.uint8)}, ["want obs uint8 [12, 64, 64, 3]", "got uint8 [12, 64, 64]"]),
        ({"obs": np.zeros((12, 64, 64, 3), np.float32)}, ["want obs uint8", "got float32"]),
        ({"action": np.arange(11) % 3}, ["[11, 64, 64, 3]", "[12, 64, 64, 3]"]),
        ({"action": np.array(3)}, ["want obs", "[0, 64, 64, 3]"]),
        ({"reward": np.zeros((12, 1), np.float32)}, ["want reward float [12]", "got float32 [12, 1]"]),
        ({"reward": np.full(12, np.nan, np.float32)}, ["want finite rewards"]),
        ({"action": np.full(12, 4)}, ["want actions in [0, 4)", "got 4 to 4"]),
        ({"terminated": None}, ["want arrays", "terminated", "got obs, action, reward, life_loss"]),
        (
            {name: array[:7] for name, array in demonstration().items()},
            ["want at least 8 steps, one window", "got 7"],
        ),
    ],
)
def test_a_bad_demonstration_is_refused_before_anything_is_written(
    refused: Callable[..., None], here: Path, changes: dict[str, Any], words: list[str]
) -> None:
    np.savez(here / "bad.npz", **demonstration(**changes))
    refused(flags(demonstration="bad.npz", run_dir="run"), "bad.npz", *words)


@pytest.mark.parametrize("kind", ["npy", "text", "empty", "torn", "flipped"])
def test_a_file_that_is_no_demonstration_is_refused(refused: Callable[..., None], here: Path, kind: str) -> None:
    file = here / "bad.npz"
    np.savez_compressed(file, **demonstration(obs=np.random.default_rng(0).integers(0, 9, (12, 64, 64, 3), np.uint8)))
    whole = file.read_bytes()
    if kind == "npy":
        with file.open("wb") as stream:
            np.save(stream, np.zeros(3))
    elif kind == "flipped":
        flip(file, len(whole) // 2)
    else:
        file.write_bytes({"text": b"not a zip", "empty": b"", "torn": whole[: len(whole) // 2]}[kind])
    refused(flags(demonstration="bad.npz"), "want a demonstration .npz", "bad.npz")


def test_a_scripted_demonstration_shorter_than_a_window_is_refused(refused: Callable[..., None]) -> None:
    # 7 steps of 4 frames, where windows have 8.
    short = flags(game="Freeway", demonstration="scripted", demonstration_episodes=1, frame_cap=28)
    refused(short, "want at least 8 steps", "7")


def test_a_resumed_run_keeps_what_it_is(refused: Callable[..., None], trained: Path) -> None:
    resume = ["--resume", str(trained)]
    refused([*resume, "--gamma", "0.5"], "want a resumed run as it was", "got ['gamma']", folder=trained)
    refused([*resume, "--game", "Pong", "--seed", "3"], "got ['game', 'seed']", folder=trained)
    refused([*resume, "--preset", "storm"], "got ['preset']", folder=trained)
    refused([*resume, "--run-dir", "run"], "want either --resume or --run-dir", "run", folder=trained)
    refused([*resume, "--device", "nonsense"], "got 'nonsense'", folder=trained)
    run, resumed = parse([*resume, "--steps", "60", "--log-every", "4", "--checkpoint-every", "7"])
    assert resumed
    assert run.path == trained
    assert (run.config.steps, run.config.log_every, run.config.checkpoint_every) == (60, 4, 7)
    assert run.config.agent == small_config().agent


def test_resuming_a_run_without_a_checkpoint_is_refused(refused: Callable[..., None], here: Path) -> None:
    Run.create(here / "run", small_config())
    refused(["--resume", "run"], "want a run with a checkpoint to resume; run has none")


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json"])
def test_resuming_from_a_damaged_checkpoint_is_refused(refused: Callable[..., None], trained: Path, name: str) -> None:
    file = trained / "ckpt/40" / name
    whole = flip(file, 0)
    refused(["--resume", str(trained), "--steps", "44"], "want", str(file), folder=trained)
    file.write_bytes(whole)


def test_nested_fields_are_flat_on_the_command_line(here: Path) -> None:
    argv = "--preset storm --device cpu --gamma 0.9 --num-envs 2 --width 256 --horizon 8 --capacity 5000".split()  # noqa: SIM905
    run, resumed = parse([*argv, "--game", "MsPacman", "--full-action-space", "--scored-step", "None"])
    config = run.config
    assert not resumed
    assert (config.game, config.scored_step, config.seed) == ("MsPacman", None, 1)
    assert (config.agent.gamma, config.env.num_envs, config.model.width) == (0.9, 2, 256)
    assert (config.imagine.horizon, config.loop.capacity, config.env.full_action_space) == (8, 5000, True)
    # All else is the preset's.
    assert config.agent.lam == preset("storm").agent.lam
    assert config.model.layers == preset("storm").model.layers
    assert run.path.parent == Path("runs")
    assert run.path.name.startswith("MsPacman-s1-")
    assert tree(here) == {}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_alone_is_what_config_says(name: str, here: Path) -> None:
    assert parse(["--preset", name])[0].config == preset(name)
    assert tree(here) == {}


def test_the_small_configuration_reads_the_same_from_the_command_line(here: Path) -> None:
    run, resumed = parse(flags(run_dir="run"))
    assert (run.path, run.config, resumed) == (Path("run"), small_config(), False)
    assert tree(here) == {}


def test_compile_on_a_cpu_is_the_path_that_always_runs_there_and_says_so(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(run_dir="plain", steps=48)]) == 0
    assert "compile" not in capsys.readouterr().out
    assert main([*flags(run_dir="run", steps=48), "--compile"]) == 0
    said = "no graphs on a CPU: the fast paths that agree with the definitions, which run without this too"
    assert f"compile    {said}\n" in capsys.readouterr().out
    assert Run.open(here / "run").config.compile
    assert rows(here / "run", "metrics.jsonl") == rows(here / "plain", "metrics.jsonl")
    plain = weights(here / "plain", 48)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in weights(here / "run", 48).items())


def test_the_kernels_asked_for_are_logged_and_triton_on_a_cpu_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(run_dir="refused"), "--kernels", "triton"]) == 2
    assert "want --kernels triton on a GPU; got a CPU" in capsys.readouterr().err
    assert tree(here) == {}
    assert main([*flags(run_dir="run", steps=8), "--kernels", "reference"]) == 0
    assert "kernels: PyTorch references" in capsys.readouterr().out
    assert Run.open(here / "run").config.kernels == "reference"


def test_a_run_without_a_name_is_made_under_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(steps=8)) == 0
    (path,) = (here / "runs").iterdir()
    assert path.name.startswith("Breakout-s1-")
    told = capsys.readouterr().out
    assert f"runs/{path.name}" in told
    assert "compile" not in told
    assert Run.open(path).config == small_config(steps=8)
