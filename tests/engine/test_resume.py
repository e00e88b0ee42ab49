"""A run that was stopped and resumed equals, to the bit, one that never was."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storm_fast.config import Config
from storm_fast.envs import Collector, GymCollector, Steps
from storm_fast.runs.run import Run
from storm_fast.train import main, train
from tests.small import EXACT, rows, small_config, tree, weights

KIND = {"native": Collector, "gym": GymCollector}[EXACT]


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Equal to the bit, through dictionaries and lists."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{i}")
    else:
        assert a == b, where


def assert_same_run(stopped: Path, whole: Path, steps: int) -> None:
    """What two runs left behind, but for the clock: logs, the last weights, and all that goes on from there."""
    assert rows(stopped, "metrics.jsonl") == rows(whole, "metrics.jsonl")
    assert rows(stopped, "episodes.jsonl") == rows(whole, "episodes.jsonl")
    assert_same(weights(stopped, steps), weights(whole, steps), "weights")
    states = [Run.open(run).load_state(steps)[0] for run in (stopped, whole)]
    assert_same(*states)


def run_whole(path: Path, config: Config) -> Path:
    """Train without a stop, and see that the run learnt and finished episodes."""
    train(Run(path, config), False)
    metrics = rows(path, "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(config.log_every, config.steps + 1, config.log_every))
    assert {"model/total", "agent/total", "agent/gradient_norm"} <= metrics[-1].keys()
    return path


def run_with_stops(path: Path, config: Config, stops: tuple[int, ...]) -> Path:
    """Train to each stop in turn, then to the end."""
    train(Run(path, replace(config, steps=stops[0])), False)
    for steps in (*stops[1:], config.steps):
        assert main(["--resume", str(path), "--steps", str(steps)]) == 0
    return path


def write_demonstration(path: Path, steps: int = 20) -> None:
    """Frames of noise with actions, rewards and ends that any game has."""
    draws = np.random.default_rng(5)
    np.savez(
        path,
        obs=draws.integers(0, 256, (steps, 64, 64, 3), dtype=np.uint8),
        action=draws.integers(0, 3, steps),
        reward=draws.integers(0, 2, steps).astype(np.float32),
        terminated=np.arange(steps) == steps - 1,
        life_loss=draws.random(steps) < 0.2,
    )


def test_a_run_with_the_slow_twin_equals_one_with_the_c_collector_and_is_resumed_too(tmp_path: Path) -> None:
    config = small_config()
    whole = run_whole(tmp_path / "whole", config)
    slow = replace(config, env=replace(config.env, collector="gym"))
    stopped = run_with_stops(tmp_path / "stopped", slow, (22, 70))
    for name in ("metrics.jsonl", "episodes.jsonl"):
        assert rows(stopped, name) == rows(whole, name)
    assert_same(weights(stopped, config.steps), weights(whole, config.steps), "weights")


def test_a_run_may_be_resumed_with_other_threads_but_not_with_another_kind_of_collector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    train(Run(path, replace(small_config(), steps=40)), False)
    assert main(["--resume", str(path), "--num-threads", "2", "--steps", "48"]) == 0
    assert main(["--resume", str(path), "--collector", "ale_vector", "--steps", "56"]) == 2
    assert "want the state of AleVectorCollector" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["replay", "model_batch"])
def test_a_resumed_run_equals_one_never_stopped(tmp_path: Path, source: str) -> None:
    config = small_config()
    # The other choices that keep something between steps vary along.
    acting = {"acting_latent": "prior", "acting_at_end": "clear"} if source == "replay" else {}
    config = replace(
        config, imagine=replace(config.imagine, context_source=source), loop=replace(config.loop, **acting)
    )
    whole = run_whole(tmp_path / "whole", config)
    ends = [row["step"] for row in rows(whole, "episodes.jsonl")]
    # In warm-up, at its end, after it; 22 and 70 lie between two rows of the log; several stops in one run.
    for stops in ((22,), (70,), (32, 58, 74)):
        assert min(ends) < min(stops)
        assert max(stops) < max(ends)
        stopped = run_with_stops(tmp_path / str(stops), config, stops)
        assert_same_run(stopped, whole, config.steps)


def test_the_action_that_sticks_is_resumed(tmp_path: Path) -> None:
    config = small_config("Pong")
    config = replace(config, env=replace(config.env, sticky=0.9))
    whole = run_whole(tmp_path / "whole", config)
    # Four times, since an emulator that starts again with another previous action moves otherwise only sometimes.
    stopped = run_with_stops(tmp_path / "stopped", config, (34, 54, 76, 90))
    assert_same_run(stopped, whole, config.steps)


@pytest.mark.parametrize("checkpoint_every", [24, 1000])
def test_a_ring_that_has_wrapped_is_resumed(tmp_path: Path, checkpoint_every: int) -> None:
    config = small_config("Pong")
    config = replace(config, checkpoint_every=checkpoint_every, loop=replace(config.loop, capacity=30))
    whole = run_whole(tmp_path / "whole", config)
    # 35 rows of which 15 are held; and the resumed run wraps again.
    stopped = run_with_stops(tmp_path / "stopped", config, (70,))
    assert_same_run(stopped, whole, config.steps)


@pytest.mark.parametrize("overlap", [False, True])
def test_bfloat16_and_updates_at_other_rates_resume_exactly(tmp_path: Path, overlap: bool) -> None:
    config = replace(small_config(), precision="bf16")
    config = replace(
        config,
        env=replace(config.env, num_envs=3),
        loop=replace(config.loop, model_every=4, agent_every=8, warmup=40, overlap=overlap),
    )
    train(Run(tmp_path / "whole", config), False)
    stopped = run_with_stops(tmp_path / "stopped", config, (61,))
    # 61 becomes 63, the first whole turn of three environments; the last is 96.
    assert 63 in Run.open(stopped).checkpoints()
    assert_same_run(stopped, tmp_path / "whole", 96)


def test_what_lean_and_plus_add_resumes_exactly(tmp_path: Path) -> None:
    config = small_config()
    config = replace(
        config,
        env=replace(config.env, noops=20),
        model=replace(config.model, conv_activation="silu", loss_balance="harmonised"),
        imagine=replace(config.imagine, context_source="replay"),
        agent=replace(
            config.agent, agent_updates=2, policy_loss="ratio", agent_activation="silu", imagined_end="weighted"
        ),
        loop=replace(config.loop, acting_at_end="clear", acting_first="zero", acting_uniform=0.3, recent_share=0.5),
    )
    whole = run_whole(tmp_path / "whole", config)
    stopped = run_with_stops(tmp_path / "stopped", config, (54, 76))
    assert_same_run(stopped, whole, config.steps)


def test_a_run_with_a_demonstration_resumes_from_its_own_copy(tmp_path: Path) -> None:
    file = tmp_path / "demonstration.npz"
    write_demonstration(file)
    config = replace(small_config("Pong"), demonstration=str(file))
    config = replace(config, imagine=replace(config.imagine, context_source="replay", imagine_demonstration_batch=3))
    whole = run_whole(tmp_path / "whole", config)
    without = run_whole(tmp_path / "without", replace(config, demonstration="none"))
    assert rows(whole, "metrics.jsonl") != rows(without, "metrics.jsonl")
    path = tmp_path / "stopped"
    train(Run(path, replace(config, steps=54)), False)
    file.unlink()
    assert main(["--resume", str(path), "--steps", "96"]) == 0
    assert_same_run(path, whole, config.steps)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint_to_resume_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    config = small_config()
    whole = run_whole(tmp_path / "whole", config)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    recv, turns = KIND.recv, 0

    def interrupted(self: Any) -> Steps:
        nonlocal turns
        turns += 1
        if turns == 27:
            os.kill(os.getpid(), number)
        return recv(self)

    path = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(KIND, "recv", interrupted)
        train(Run(path, config), False)
    assert Run.open(path).checkpoints() == [40, 54]
    assert f"stopped at step 54; to go on: python -m storm_fast.train --resume {path}" in capsys.readouterr().out
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert main(["--resume", str(path)]) == 0
    assert_same_run(path, whole, config.steps)


def test_a_second_signal_kills_and_what_came_after_the_last_checkpoint_is_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small_config(), checkpoint_every=36)
    whole = run_whole(tmp_path / "whole", config)
    recv, turns = KIND.recv, 0

    def killed(self: Any) -> Steps:
        nonlocal turns
        turns += 1
        if turns == 45:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return recv(self)

    path = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(KIND, "recv", killed)
        with pytest.raises(KeyboardInterrupt):
            train(Run(path, config), False)
    # The logs have gone further than the checkpoint: an episode of each game ended at 80, a row was written at 88.
    assert Run.open(path).checkpoints() == [36, 72]
    assert rows(path, "metrics.jsonl")[-1]["step"] == 88
    assert rows(path, "episodes.jsonl")[-1]["step"] == 80
    assert main(["--resume", str(path)]) == 0
    assert_same_run(path, whole, config.steps)


def test_resuming_a_finished_run_changes_nothing_it_recorded(tmp_path: Path) -> None:
    config = small_config(steps=48)
    path = run_whole(tmp_path / "run", config)
    before = {name: content for name, content in tree(path).items() if not name.startswith("tensorboard")}
    assert main(["--resume", str(path)]) == 0
    assert {name: content for name, content in tree(path).items() if not name.startswith("tensorboard")} == before


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    config = small_config(steps=64)
    first = run_whole(tmp_path / "1", config)
    second = run_whole(tmp_path / "2", replace(config, seed=2))
    assert rows(first, "metrics.jsonl") != rows(second, "metrics.jsonl")
    same = [torch.equal(a, weights(second, 64)[name]) for name, a in weights(first, 64).items()]
    assert not all(same)
