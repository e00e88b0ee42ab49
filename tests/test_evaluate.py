"""Evaluation: a quota for every environment, the right checkpoint, the right score; and the probe of rewards."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from storm_fast.engine import build
from storm_fast.engine.precision import choose
from storm_fast.engine.probe import auc, reward_probe
from storm_fast.envs import Steps, atari, extension, games
from storm_fast.evaluate import Command, evaluate, main, play
from storm_fast.runs.run import Run
from storm_fast.runs.scores import published
from tests.small import flip, small_config, tree, untrained_run

FAST = ["--episodes", "2", "--num-envs", "2", "--device", "cpu", "--precision", "fp32"]


class ScriptedCollector:
    """Environment i plays episodes of lengths_N[i], around and around; the return of its j-th is 100 i + j."""

    name = "scripted"
    num_actions = 3

    def __init__(self, lengths: list[list[int]]) -> None:
        self.lengths, self.num_envs = lengths, len(lengths)
        self.obs_NYXP = np.zeros((self.num_envs, 64, 64, 3), np.uint8)
        self.episode, self.left = [0] * self.num_envs, [each[0] for each in lengths]
        self.turns, self.seed = 0, -1

    def reset(self, seed: int) -> np.ndarray:
        """Keep the seed."""
        self.seed = seed
        return self.obs_NYXP

    def send(self, action_N: np.ndarray, out: Tensor) -> None:
        """Check that the policy's actions arrive."""
        assert action_N.tolist() == [1] * self.num_envs

    def recv(self) -> Steps:
        """One step of every environment."""
        self.turns += 1
        N = self.num_envs
        return_N = np.array([100.0 * i + self.episode[i] for i in range(N)])
        ended_N = np.zeros(N, bool)
        for i in range(N):
            self.left[i] -= 1
            if self.left[i] == 0:
                ended_N[i] = True
                self.episode[i] += 1
                self.left[i] = self.lengths[i][self.episode[i] % len(self.lengths[i])]
        # Odd environments end by truncation, which ends an episode as well.
        odd_N = np.arange(N) % 2 == 1
        zero_N = np.zeros(N, np.float32)
        no_N = np.zeros(N, bool)
        flags = (ended_N & ~odd_N, ended_N & odd_N, no_N)
        return Steps(self.obs_NYXP, zero_N, *flags, return_N, np.ones(N, np.int64), self.obs_NYXP)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: evaluation saves none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Not asked for."""
        raise AssertionError(state)


class OnePolicy:
    """Always action 1; counts the ends it is told of."""

    def __init__(self, N: int) -> None:
        self.N, self.told = N, 0

    def act(self, obs_NYXP: Tensor, _: torch.Generator) -> Tensor:
        """Action 1 everywhere."""
        assert obs_NYXP.shape == (self.N, 64, 64, 3)
        return torch.ones(self.N, dtype=torch.int64)

    def remember(self, *_: Tensor) -> None:
        """Nothing."""

    def end_episodes(self, ended_N: Tensor) -> None:
        """Count the ends."""
        self.told += int(ended_N.sum())


@settings(deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    episodes=st.integers(1, 4),
)
def test_every_environment_gives_its_first_episodes(lengths: list[list[int]], episodes: int) -> None:
    collector, policy = ScriptedCollector(lengths), OnePolicy(len(lengths))
    returns = play(collector, policy, episodes, 5, torch.Generator(), choose("cpu", "fp32"))
    assert returns == [[100.0 * i + j for j in range(episodes)] for i in range(len(lengths))]
    # It stops with the slowest one's last episode, and the policy hears of every end, recorded or not.
    slowest = max(sum((each * episodes)[:episodes]) for each in lengths)
    assert collector.turns == slowest
    assert policy.told == sum(collector.episode)
    assert collector.seed == 5


def test_short_episodes_do_not_crowd_out_long_ones() -> None:
    collector = ScriptedCollector([[1], [50]])
    returns = play(collector, OnePolicy(2), 2, 0, torch.Generator(), choose("cpu", "fp32"))
    assert returns == [[0.0, 1.0], [100.0, 101.0]]
    assert collector.episode == [100, 2]


def test_the_result_holds_the_score_against_random_and_human(tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", small_config("Breakout"), [30])
    command = Command(run.path, episodes=4, num_envs=2, device="cpu", precision="fp32")
    result = evaluate(run, 30, command)
    assert json.loads((run.path / "eval/30.json").read_text()) == result
    assert [len(returns) for returns in result["returns_per_env"]] == [2, 2]
    assert result["score"] == np.mean(result["returns_per_env"])
    # Breakout's constants, as the field prints them: random 1.7, human 30.5.
    assert (result["random"], result["human"]) == (1.7, 30.5)
    assert result["human_normalised"] == pytest.approx((result["score"] - 1.7) / 28.8, rel=1e-12)
    assert result["published_storm"] == published()["methods"]["STORM"]["Breakout"]
    assert len(result["published_storm"]) == 5
    assert (result["game"], result["step"], result["seed"]) == ("Breakout", 30, 0)
    assert evaluate(run, 30, command) == result


@pytest.mark.skipif(extension() is None, reason="the C++ collector was not built")
def test_the_native_collector_plays_the_slow_twins_episodes(tmp_path: Path) -> None:
    results = {}
    for kind in ("native", "gym"):
        config = small_config("Breakout")
        config = replace(config, env=replace(config.env, collector=kind))
        run = untrained_run(tmp_path / kind, config, [30])
        command = Command(run.path, episodes=6, num_envs=3, device="cpu", precision="fp32")
        results[kind] = evaluate(run, 30, command)
    assert results["native"]["collector"].startswith("Collector (C++")
    assert results["gym"]["collector"].startswith("GymCollector")
    assert results["native"]["returns_per_env"] == results["gym"]["returns_per_env"]


def test_the_normalised_score_follows_the_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained_run(tmp_path / "run", small_config("Breakout"), [30])
    monkeypatch.setattr("storm_fast.evaluate.play", lambda *_: [[1.7, 30.5], [30.5, 59.3]])
    result = evaluate(run, 30, Command(run.path, episodes=4, num_envs=2, device="cpu", precision="fp32"))
    assert result["score"] == pytest.approx(30.5)
    assert result["human_normalised"] == pytest.approx(1.0)


def test_a_game_outside_atari_100k_has_no_normalised_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = untrained_run(tmp_path / "run", small_config("Tennis"), [30])
    assert main([str(run.path), *FAST]) == 0
    result = json.loads((run.path / "eval/30.json").read_text())
    assert [result[name] for name in ("random", "human", "human_normalised", "published_storm")] == [None] * 4
    assert "Tennis step 30: score" in capsys.readouterr().out


def test_freeway_is_probed_and_compared_with_its_script(tmp_path: Path) -> None:
    config = small_config("Freeway")
    # 100 steps: enough for a chicken that only walks up to cross.
    run = untrained_run(tmp_path / "run", replace(config, env=replace(config.env, frame_cap=400)), [30])
    result = evaluate(run, 30, Command(run.path, episodes=1, num_envs=1, device="cpu", precision="fp32"))
    assert result["always_up"] >= 1
    assert 0 <= result["reward_probe"] <= 1


@pytest.mark.parametrize(
    ("scored", "asked", "evaluated"),
    [(20, "scored", [20]), (25, "scored", [30]), (None, "scored", [30]), (20, "all", [10, 20, 30]), (20, "10", [10])],
)
def test_the_named_checkpoints_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: int | None, asked: str, evaluated: list[int]
) -> None:
    run = untrained_run(tmp_path / "run", replace(small_config(), scored_step=scored), [10, 20, 30])
    monkeypatch.setattr("storm_fast.evaluate.play", lambda *_: [[1.0], [2.0]])
    assert main([str(run.path), "--checkpoint", asked, *FAST]) == 0
    assert sorted(int(file.stem) for file in (run.path / "eval").iterdir()) == evaluated


def test_a_checkpoint_plays_with_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained_run(tmp_path / "run", small_config(), [10, 20])
    seen = []

    def look(_: Any, policy: Any, *__: Any) -> list[list[float]]:
        assert not policy.world_model.training
        seen.append(build.weights(policy.world_model, policy.agent))
        return [[1.0], [2.0]]

    monkeypatch.setattr("storm_fast.evaluate.play", look)
    assert main([str(run.path), "--checkpoint", "all", *FAST]) == 0
    for step, weights in zip((10, 20), seen, strict=True):
        stored = run.load_weights(step)
        assert all(torch.equal(weights[name], tensor) for name, tensor in stored.items())
    assert not torch.equal(seen[0]["agent.actor.0.weight"], seen[1]["agent.actor.0.weight"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "25"], ["one of 10, 20; got '25'"]),
        (["--checkpoint", "best"], ["one of 10, 20; got 'best'"]),
        (["--episodes", "3"], ["--episodes that --num-envs divides", "got 3 and 2"]),
        (["--episodes", "0"], ["got 0 and 2"]),
        (["--num-envs", "0"], ["got 2 and 0"]),
        (["--device", "nonsense"], ["got 'nonsense'"]),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    run = untrained_run(tmp_path / "run", small_config(), [10, 20])
    before = tree(tmp_path)
    assert main([str(run.path), *FAST, *arguments]) == 2
    told = capsys.readouterr().err
    assert [word for word in ["error: want", *words] if word not in told] == []
    assert tree(tmp_path) == before


def test_what_is_no_run_or_damaged_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), *FAST]) == 2
    assert f"want a run folder, with config.json and ckpt/; {tmp_path} is none" in capsys.readouterr().err
    empty = Run.create(tmp_path / "empty", small_config())
    assert main([str(empty.path), *FAST]) == 2
    assert f"want a run with a checkpoint; {empty.path} has none" in capsys.readouterr().err
    run = untrained_run(tmp_path / "run", small_config(), [10])
    file = run.path / "ckpt/10/model.safetensors"
    flip(file, file.stat().st_size // 2)
    assert main([str(run.path), *FAST]) == 2
    assert str(file) in capsys.readouterr().err
    assert list((run.path / "eval").iterdir()) == []


def test_published_scores_cover_the_26_games() -> None:
    scores = published()
    assert len(scores["random"]) == 26
    assert set(scores["random"]) <= set(games())
    for name in ("random", "human"):
        assert set(scores[name]) == set(scores["random"])
    assert len(scores["methods"]["STORM"]) == 26
    assert {len(seeds) for seeds in scores["methods"]["STORM"].values()} == {5}
    assert all(scores["human"][game] != scores["random"][game] for game in scores["human"])


@settings(deadline=None)
@given(
    score_N=arrays(np.float64, st.integers(1, 12), elements=st.integers(-3, 3).map(float)),
    data=st.data(),
)
def test_auc_counts_pairs_and_half_of_the_ties(score_N: np.ndarray, data: st.DataObject) -> None:
    positive_N = data.draw(arrays(np.bool_, len(score_N)))
    pairs = [(p, n) for p in score_N[positive_N] for n in score_N[~positive_N]]
    area = auc(score_N, positive_N)
    if pairs:
        assert area == pytest.approx(np.mean([(p > n) + (p == n) / 2 for p, n in pairs]), abs=1e-12)
    else:
        assert np.isnan(area)


def rollout(n: int) -> dict[str, Any]:
    """Noise in a demonstration's format, with rewards of both signs and none."""
    draws = np.random.default_rng(3)
    return {
        "obs": draws.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8),
        "action": draws.integers(0, 3, n),
        "reward": draws.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.8, 0.1]).astype(np.float32),
        "terminated": np.zeros(n, bool),
        "life_loss": np.zeros(n, bool),
    }


@pytest.mark.parametrize("batch", [7, 256])
def test_the_probe_of_an_untrained_model_lies_between_0_and_1(batch: int) -> None:
    config, precision = small_config("Freeway"), choose("cpu", "fp32")
    world_model, _ = build.networks(config, atari("Freeway"), precision)
    probe = reward_probe(world_model, rollout(40), 4, 6, torch.Generator().manual_seed(0), precision, batch)
    assert 0 <= probe <= 1


def test_the_probe_scores_each_window_against_its_own_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    config, precision = small_config("Freeway"), choose("cpu", "fp32")
    world_model, _ = build.networks(config, atari("Freeway"), precision)
    C, T = 4, 6

    def seer(_: Any, windows: Any, shown: int, *__: Any) -> np.ndarray:
        assert windows.reward_BT.shape[1] == C + T
        return (windows.reward_BT[:, shown:] > 0).sum(1).double().numpy()

    monkeypatch.setattr("storm_fast.engine.probe.imagined_reward", seer)
    arguments = (rollout(40), C, T, torch.Generator(), precision)
    assert reward_probe(world_model, *arguments, batch=7) == 1.0
    monkeypatch.setattr("storm_fast.engine.probe.imagined_reward", lambda *a: -seer(*a))
    assert reward_probe(world_model, *arguments, batch=7) == 0.0


@pytest.mark.parametrize("n", [3, 9])
def test_the_probe_of_a_rollout_without_a_window_is_nan(n: int) -> None:
    config, precision = small_config("Freeway"), choose("cpu", "fp32")
    world_model, _ = build.networks(config, atari("Freeway"), precision)
    assert np.isnan(reward_probe(world_model, rollout(n), 4, 6, torch.Generator(), precision))
