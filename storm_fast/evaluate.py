"""Evaluate a run's checkpoints: `python -m storm_fast.evaluate RUN`.

Every environment plays the same number of episodes, so that short episodes do not crowd out long ones; actions
are sampled (STORM sec. 4.1). The score is the mean return, the human-normalised score (A - R) / (H - R).
"""

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from storm_fast.config import Config
from storm_fast.console import say
from storm_fast.engine import build, scripted
from storm_fast.engine.narrow import narrowed
from storm_fast.engine.precision import Precision, choose
from storm_fast.engine.probe import reward_probe
from storm_fast.engine.turn import Turn, first_frames
from storm_fast.envs import AnyCollector, Steps, spec_of
from storm_fast.errors import InputError
from storm_fast.model.policy import Policy
from storm_fast.runs.run import Run
from storm_fast.runs.scores import human_normalised, published

PROBE_PROBABILITY = 0.9  # of the scripted action on the probe's rollout; demonstrations have 0.8


@dataclass(frozen=True)
class Command:
    """Evaluate checkpoints of a run; writes RUN/eval/<step>.json."""

    run: Annotated[Path, tyro.conf.Positional]
    """the run folder"""
    checkpoint: str = "scored"
    """a step; `all`; or `scored`, the one the configuration names, else the last"""
    episodes: int = 20
    """episodes per checkpoint, the same number in every environment"""
    num_envs: int = 5
    """environments side by side; must divide the episodes"""
    seed: int = 0
    """of environments and actions; training uses others"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<i>"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """of matrix products"""


class Evaluated:
    """A policy that plays and learns nothing."""

    def __init__(self, policy: Policy, generator: torch.Generator, precision: Precision) -> None:
        self._policy, self._generator, self._precision = policy, generator, precision

    def act(self, obs_NYXP: Tensor) -> npt.NDArray[np.int64]:
        """Actions drawn from the policy."""
        seen_NYXP = obs_NYXP.to(self._precision.device, copy=True)
        with self._precision.autocast():
            action_N = self._policy.act(seen_NYXP, self._generator)
        self._policy.remember(seen_NYXP, action_N)
        return action_N.cpu().numpy()

    def note(self, steps: Steps) -> None:
        """Let the policy know which episodes are over."""
        if steps.over_N.any():
            self._policy.end_episodes(torch.from_numpy(steps.over_N).to(self._precision.device))


def play(
    collector: AnyCollector,
    policy: Policy,
    episodes: int,
    seed: int,
    generator: torch.Generator,
    precision: Precision,
) -> list[list[float]]:
    """Returns of `episodes` episodes of every environment, in order.

    A fast environment waits, its further games unrecorded, until the slowest has its quota.
    """
    N = collector.num_envs
    returns: list[list[float]] = [[] for _ in range(N)]
    obs_NYXP = first_frames(collector, seed, precision.device)
    turn = Turn(collector, Evaluated(policy, generator, precision), obs_NYXP)
    with tqdm(total=N * episodes, unit="episode", leave=False) as bar:
        while min(map(len, returns)) < episodes:
            steps = turn.play()
            for i in np.flatnonzero(steps.over_N):
                if len(returns[i]) < episodes:
                    returns[i].append(float(steps.episode_return_N[i]))
                    bar.update()
    return returns


def evaluate(run: Run, step: int, command: Command) -> dict[str, Any]:
    """Play one checkpoint's episodes; the result, as written to eval/<step>.json."""
    config, precision = run.config, choose(command.device, command.precision)
    build.prepare(config, precision)
    weights = run.load_weights(step)
    spec = spec_of(config)
    collector = spec.open(replace(config.env, num_envs=command.num_envs))
    world_model, agent = build.networks(config, spec, precision)
    build.load_weights(world_model, agent, weights)
    world_model.eval()
    loop = replace(config.loop, acting_uniform=0.0)  # which explores, for training
    policy = Policy(world_model, agent, loop, command.num_envs, precision.device)
    generator = torch.Generator(precision.device).manual_seed(command.seed)
    quota = command.episodes // command.num_envs
    # Far from the seeds of training, which are small.
    with narrowed(precision, world_model, agent):  # folded and rounded once, not at each step
        returns = play(collector, policy, quota, command.seed + 1_000_000, generator, precision)
    score = float(np.mean(returns))
    scores, game = published(), config.atari_game
    result = {
        "game": config.env_name,
        "step": step,
        "score": score,
        "returns_per_env": returns,
        "random": scores["random"].get(game),
        "human": scores["human"].get(game),
        "human_normalised": human_normalised(game, score),
        "published_storm": scores["methods"]["STORM"].get(game),
        "seed": command.seed,
        "device": str(precision),
        "collector": collector.name,
    }
    if game in scripted.SCRIPTS:
        result |= _baselines(config, command.seed)
        rollout = scripted.record(game, config.env, command.seed + 2_000_000, PROBE_PROBABILITY)
        C, T = config.imagine.context, config.imagine.horizon
        probe = reward_probe(world_model, rollout, C, T, generator, precision)
        result["reward_probe"] = None if math.isnan(probe) else probe
    (run.path / "eval" / f"{step}.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _baselines(config: Config, seed: int) -> dict[str, float]:
    """What the scripted action alone earns, always taken: two episodes."""
    returns: list[npt.NDArray[np.float64]] = [
        scripted.record(config.game, config.env, seed + 3_000_000 + i, probability=1.0)["reward"].sum()
        for i in range(2)
    ]
    return {f"always_{scripted.SCRIPTS[config.game].action.lower()}": float(np.mean(returns))}


def _steps(run: Run, checkpoint: str) -> list[int]:
    """The checkpoints that the command names."""
    have = run.checkpoints()
    if not have:
        raise InputError(f"want a run with a checkpoint; {run.path} has none")
    if checkpoint == "all":
        return have
    if checkpoint == "scored":
        scored = run.config.scored_step
        if scored is None:
            return [have[-1]]
        # Several environments may step over the very number; the first checkpoint beyond it is meant then.
        beyond = [step for step in have if step >= scored]
        if not beyond:
            say(f"note: the run has not reached step {scored}, which is to be scored; its last checkpoint is played")
        return [beyond[0] if beyond else have[-1]]
    if not checkpoint.isdigit() or int(checkpoint) not in have:
        raise InputError(f"want --checkpoint all, scored or one of {', '.join(map(str, have))}; got {checkpoint!r}")
    return [int(checkpoint)]


def _report(result: dict[str, Any]) -> str:
    """The result on a few lines."""
    lines = [f"{result['game']} step {result['step']}: score {result['score']:.2f} on {result['device']}"]
    shown = [name for name in ("random", "human", "human_normalised", "always_up", "reward_probe") if name in result]
    lines += [f"  {name.replace('_', ' '):17s}{result[name]:10.3f}" for name in shown if result[name] is not None]
    if result["published_storm"]:
        seeds = " ".join(f"{x:.1f}" for x in result["published_storm"])
        lines.append(f"  STORM, published seeds (without demonstration)  {seeds}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Evaluate and report; 0 when done, 2 when the input cannot be used."""
    command = tyro.cli(Command, args=argv)
    try:
        if command.num_envs < 1 or command.episodes < 1 or command.episodes % command.num_envs:
            wanted = "--episodes that --num-envs divides, both at least 1"
            raise InputError(f"want {wanted}; got {command.episodes} and {command.num_envs}")
        run = Run.open(command.run)
        choose(command.device, command.precision)
        for step in _steps(run, command.checkpoint):
            say(_report(evaluate(run, step, command)))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def cli() -> None:
    """Entry point of the command."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
