"""Train STORM on an Atari game: `python -m storm_fast.train --game Pong`. Read this first.

Each turn of the loop plays one step of every environment and then learns from the replay:

    act      policy.py       the newest steps through the world model, then the actor
    step     collect.py      the games move on
    append   replay.py       a ring of frames on the training device
    model    learn.py        one update of the world model (world_model.py, transformer.py)
    imagine  imagine.py      the agent acts in the world model
    agent    learn.py        one update of actor and critic (agent.py)

config.py holds every number, run.py the folder that is left behind.
"""

import argparse
import dataclasses
import datetime
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from storm_fast import build, demo, learn
from storm_fast.collect import INEXACT_RESTORE, GymCollector, Steps, check_game
from storm_fast.config import PRESETS, Config, flat, preset
from storm_fast.errors import InputError
from storm_fast.metrics import MeanMetrics
from storm_fast.optimizer import Optimizer
from storm_fast.policy import Policy
from storm_fast.precision import choose
from storm_fast.replay import Replay
from storm_fast.run import Run, check_free, say
from storm_fast.world_model import FRAME

RESUMABLE = frozenset({"steps", "scored_step", "device", "precision", "compile", "checkpoint_every", "log_every"})
"""Fields that may change when a run is resumed; the others are part of what it is."""


@dataclass(frozen=True)
class Command:
    """Train STORM on one Atari game."""

    config: tyro.conf.OmitArgPrefixes[Config]
    run_dir: Path | None = None
    """the run's own folder, which must not exist; by default runs/<game>-s<seed>-<utc>"""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """continue the run in this folder from its last checkpoint"""


def parse(argv: list[str]) -> tuple[Run, bool]:
    """The run that the arguments ask for, and whether it is resumed. Writes nothing before all of them hold."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="storm" if torch.cuda.is_available() else "tiny")
    first.add_argument("--resume", type=Path)
    known, _ = first.parse_known_args(argv)
    stored = Run.open(known.resume) if known.resume else None
    default = Command(config=stored.config if stored else preset(known.preset))
    command = tyro.cli(Command, args=argv, default=default)
    config = command.config
    if stored:
        if command.run_dir is not None:
            raise InputError(f"want either --resume or --run-dir; got both, {known.resume} and {command.run_dir}")
        before, after = flat(stored.config), flat(config)
        changed = sorted(name for name in after if after[name] != before[name] and name not in RESUMABLE)
        if changed:
            raise InputError(f"want a resumed run as it was but for {', '.join(sorted(RESUMABLE))}; got {changed}")
        if not stored.checkpoints():
            raise InputError(f"want a run with a checkpoint to resume; {stored.path} has none")
        return Run(stored.path, config), True
    if config.preset not in PRESETS:
        raise InputError(f"want a preset of {', '.join(PRESETS)}; got {config.preset!r}")
    check_game(config.game)
    choose(config.device, config.precision)
    utc = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    path = command.run_dir or Path("runs") / f"{config.game}-s{config.seed}-{utc}"
    check_free(path)
    return Run(path, config), False


def train(run: Run, resumed: bool) -> None:
    """The whole of training, from the first random action to the last checkpoint."""
    config, loop = run.config, run.config.loop
    precision = choose(config.device, config.precision)
    collector = GymCollector(config.game, config.env)
    N = collector.num_envs
    trajectory = _demonstration(run, collector.num_actions, resumed)
    if not resumed:
        run = Run.create(run.path, config)
        if trajectory is not None:
            np.savez_compressed(run.path / "demonstration.npz", **trajectory)  # type: ignore[arg-type]
    demonstration = demo.to_replay(trajectory, precision.device) if trajectory is not None else None

    world_model, agent = build.networks(config, collector.num_actions, precision)
    model_optimizer = Optimizer(world_model, config.model.model_lr, eps=1e-8, clip=config.model.model_clip)
    agent_optimizer = Optimizer(agent, config.agent.agent_lr, eps=1e-5, clip=config.agent.agent_clip)
    replay = Replay(loop.capacity, N, FRAME, precision.device)
    policy = Policy(world_model, agent, loop, N, precision.device)
    generator = torch.Generator(precision.device).manual_seed(config.seed)
    means = MeanMetrics(precision.device)
    parts = {
        "model_optimizer": model_optimizer,
        "agent_optimizer": agent_optimizer,
        "collector": collector,
        "policy": policy,
        "means": means,
    }
    step, model_updates, obs_NYXP = 0, 0, collector.reset(config.seed)
    if resumed:
        step, model_updates = _load(run, parts, world_model, agent, replay, generator)
        obs_NYXP = collector.obs_NYXP

    say(f"run        {run.path}{' (resumed at step ' + str(step) + ')' if resumed else ''}")
    say(f"preset     {config.preset}: {config.game}, {config.steps} steps, {N} environments, seed {config.seed}")
    say(f"device     {precision}; kernels: PyTorch references")
    say(f"collector  {collector.name}")
    if config.compile:
        say("compile    asked for, not available yet: the step runs eagerly")
    if config.game in INEXACT_RESTORE:
        say(f"note       ALE restores {config.game} inexactly: resuming this run will not repeat it to the bit")

    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1 if resumed else None)  # type: ignore[no-untyped-call]
    bar = tqdm(total=config.steps, initial=step, unit="step", smoothing=0.05, mininterval=1.0)
    logged_s, logged_step, last_return = time.perf_counter(), step, float("nan")
    with _interrupts() as interrupted:
        while step < config.steps:
            # Act and step. What was seen is copied before the games overwrite it.
            seen_NYXP = torch.from_numpy(obs_NYXP).to(precision.device, copy=True)
            warm = step >= loop.warmup
            if warm:
                world_model.eval()
                with precision.autocast():
                    action_N = policy.act(seen_NYXP, generator)
                policy.remember(seen_NYXP, action_N)
            else:
                u_N = torch.rand(N, generator=generator, device=precision.device)
                action_N = (u_N * collector.num_actions).long()
            steps = collector.step(action_N.cpu().numpy())
            obs_NYXP = steps.obs_NYXP

            # Append.
            reward_N = torch.from_numpy(steps.reward_N)
            end_N = torch.from_numpy(steps.terminated_N | steps.life_lost_N)
            replay.append(seen_NYXP, action_N, reward_N, end_N)
            before, step = step, step + N
            ended_N = steps.terminated_N | steps.truncated_N
            if ended_N.any():
                policy.end_episodes(torch.from_numpy(ended_N).to(precision.device))
                rows = _episodes(step, steps)
                run.append_rows("episodes.jsonl", rows)
                last_return = rows[-1]["return"]
                for row in rows:
                    writer.add_scalar("episode/return", row["return"], step)  # type: ignore[no-untyped-call]
                    writer.add_scalar("episode/length", row["length"], step)  # type: ignore[no-untyped-call]
            if not warm and step >= loop.warmup and config.model.center_frames:
                world_model.center_on(replay.mean_frame())

            # Learn.
            context = None
            model_due, agent_due = _due(before, step, loop.model_every), _due(before, step, loop.agent_every)
            for update in range(max(model_due, agent_due) if warm else 0):
                c, i = config.model, config.imagine
                if update < model_due:
                    batch = learn.sample(
                        replay, demonstration, c.batch, c.demonstration_batch, c.length, generator
                    )
                    metrics, context = learn.update_world_model(
                        world_model, model_optimizer, batch, generator, precision
                    )
                    means.add("model", metrics)
                    model_updates += 1
                if update < agent_due and model_updates > config.agent.agent_start:
                    if i.context_source == "model_batch":
                        assert context is not None
                        start = learn.cut_context(context, i.imagine_batch, i.context, generator)
                    else:
                        batch = learn.sample(
                            replay,
                            demonstration,
                            i.imagine_batch,
                            i.imagine_demonstration_batch,
                            i.context,
                            generator,
                        )
                        start = learn.encode_context(world_model, batch, generator, precision)
                    imagined = learn.imagine(world_model, agent, start, i, generator, precision)
                    means.add("agent", learn.update_agent(agent, agent_optimizer, imagined, precision))

            # Log and save.
            bar.update(N)
            if _due(before, step, config.log_every):
                values = means.pop()
                now_s = time.perf_counter()
                rate = (step - logged_step) / (now_s - logged_s)
                logged_s, logged_step = now_s, step
                for name, value in values.items():
                    writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]
                writer.add_scalar("time/steps_per_s", rate, step)  # type: ignore[no-untyped-call]
                run.append_rows("metrics.jsonl", [{"step": step} | values | {"time/steps_per_s": rate}])
                bar.set_postfix_str(_postfix(values, last_return))
            if _due(before, step, config.checkpoint_every) or step >= config.steps or interrupted:
                run.save_replay_rows(*_unsaved(run, replay))
                state = {name: _plain(part.state_dict()) for name, part in parts.items()}  # type: ignore[attr-defined]
                state |= {"step": step, "model_updates": model_updates, "replay_rows": replay.appended}
                state |= {"random": _random_state(generator)}
                run.save_weights(step, build.weights(world_model, agent), state)
            if interrupted:
                break
    bar.close()
    writer.close()  # type: ignore[no-untyped-call]
    if step < config.steps:
        say(f"stopped at step {step}; to go on: python -m storm_fast.train --resume {run.path}")
    else:
        say(f"trained {step} steps; now: python -m storm_fast.evaluate {run.path}")


def _demonstration(run: Run, num_actions: int, resumed: bool) -> demo.Arrays | None:
    """The demonstration the configuration names, checked; a resumed run reads its own copy."""
    config = run.config
    longest = max(config.model.length, config.imagine.context)
    if config.demonstration == "none":
        return None
    if resumed:
        return demo.load(run.path / "demonstration.npz", num_actions, longest)
    if config.demonstration == "scripted":
        return demo.record(config.game, config.env, config.seed)
    return demo.load(Path(config.demonstration), num_actions, longest)


def _due(before: int, after: int, every: int) -> int:
    """Multiples of `every` in (before, after]."""
    return after // every - before // every


def _episodes(step: int, steps: Steps) -> list[dict[str, Any]]:
    """A row for each episode that ended with this step."""
    return [
        {
            "step": step,
            "env": int(i),
            "return": float(steps.episode_return_N[i]),
            "length": int(steps.episode_length_N[i]),
            "truncated": bool(steps.truncated_N[i]),
        }
        for i in np.flatnonzero(steps.terminated_N | steps.truncated_N)
    ]


def _postfix(values: dict[str, float], last_return: float) -> str:
    """The progress bar's figures."""
    shown = {"return": last_return, "model": values.get("model/total"), "agent": values.get("agent/total")}
    return ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)


def _unsaved(run: Run, replay: Replay) -> tuple[int, dict[str, torch.Tensor]]:
    """The replay's rows that no checkpoint has written yet, and the number of the first."""
    first = max(run.saved_rows, replay.appended - replay.rows)
    return first, replay.rows_since(first)


def _plain(state: Any) -> Any:
    """Numpy arrays as tensors, which the restricted unpickler reads."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state)
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_plain(value) for value in state]
    return state


def _random_state(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Every generator that training draws from: ours, and torch's own for dropout."""
    state = {"draws": generator.get_state(), "cpu": torch.get_rng_state()}
    if generator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(generator.device)
    return state


def _load(
    run: Run,
    parts: dict[str, Any],
    world_model: torch.nn.Module,
    agent: torch.nn.Module,
    replay: Replay,
    generator: torch.Generator,
) -> tuple[int, int]:
    """Restore the last checkpoint in place; gives its step and its number of world-model updates."""
    step = run.checkpoints()[-1]
    state, chunks = run.load_state(step)
    build.load_weights(world_model, agent, run.load_weights(step))  # type: ignore[arg-type]
    for name, part in parts.items():
        part.load_state_dict(state[name])
    for first, rows in chunks:
        if first + len(rows["action"]) > state["replay_rows"] - replay.rows:
            replay.restore(first, rows)
    generator.set_state(state["random"]["draws"])
    torch.set_rng_state(state["random"]["cpu"])
    if "cuda" in state["random"] and generator.device.type == "cuda":
        torch.cuda.set_rng_state(state["random"]["cuda"], generator.device)
    run.rewind_logs(step)
    return step, state["model_updates"]


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the loop ends after a whole step with a checkpoint; a second one kills."""
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(argv: list[str]) -> int:
    """Parse and train; 0 when done, 2 when the input cannot be used."""
    try:
        train(*parse(argv))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def cli() -> None:
    """Entry point of the command."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
