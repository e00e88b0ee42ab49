"""Train STORM on an Atari game: `python -m storm_fast.train --game Pong`. Read this first.

Each turn of the loop (engine/turn.py) plays one step of every environment and then learns from the replay:

    act      model/policy.py     the newest steps through the world model, then the actor
    games    envs/               the games move on
    append   data/replay.py      a ring of frames on the training device
    model    engine/learn.py     one update of the world model (model/world_model.py, transformer.py)
    imagine  model/imagine.py    the agent acts in the world model
    agent    engine/learn.py     one update of actor and critic (model/agent.py)

engine/phases.py has these as calls, which capture.py makes CUDA graphs under --compile and clock.py times;
engine/training.py names the parts and saves them. config.py holds every number, runs/run.py the folder that is left
behind, which evaluate.py scores and report.py shows; sweep.py does all of it for several games and seeds.
"""

import argparse
import datetime
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from storm_fast.config import PRESETS, Config, flat, preset
from storm_fast.console import say
from storm_fast.data import demonstration as demo
from storm_fast.data.replay import Replay
from storm_fast.engine import build, scripted
from storm_fast.engine import training as checkpoint
from storm_fast.engine.clock import PhaseClock
from storm_fast.engine.phases import Phases
from storm_fast.engine.precision import Precision, choose
from storm_fast.engine.training import Training, new_training
from storm_fast.engine.turn import Learner, Turn, first_frames
from storm_fast.envs import Steps, spec_of
from storm_fast.errors import InputError
from storm_fast.runs.run import Run, check_free

RESUMABLE = frozenset({"collector", "num_threads"}) | frozenset(
    {"steps", "scored_step", "device", "precision", "kernels", "compile", "checkpoint_every", "log_every"}
)
"""Fields that may change when a run is resumed; the others are part of what it is."""


TIMED = ("act", "games", "append", "model", "imagine", "agent")
"""Phases in the order of the progress bar."""


@dataclass(frozen=True)
class Command:
    """Train STORM on one Atari game, or on any gymnasium environment with pictures."""

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
    first.add_argument("--game")
    first.add_argument("--env-id")
    argv = [_spelled(word) for word in argv]
    known, _ = first.parse_known_args(argv)
    if known.game is not None and known.env_id is not None:
        raise InputError(f"want either --game or --env; got both, {known.game} and {known.env_id}")
    if known.env_id == "":
        raise InputError("want --env with the ID of an environment; got an empty one")
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
        _check_env(config)
        return Run(stored.path, config), True
    if config.preset not in PRESETS:
        raise InputError(f"want a preset of {', '.join(PRESETS)}; got {config.preset!r}")
    _check_env(config)
    device = choose(config.device, config.precision).device
    if config.kernels == "triton" and device.type == "cpu":
        raise InputError("want --kernels triton on a GPU; got a CPU, which runs the references (--kernels reference)")
    build.resolve_kernels(config.kernels, device)
    utc = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    path = command.run_dir or Path("runs") / f"{_as_folder(config.env_name)}-s{config.seed}-{utc}"
    check_free(path)
    return Run(path, config), False


def _spelled(word: str) -> str:
    """A word of the command line, with `--env` as the field that it is short for, and in the spelling of all others."""
    name, equals, value = word.partition("=")
    name = name.replace("_", "-") if name.startswith("--") else name
    return ("--env-id" if name == "--env" else name) + equals + value


def _check_env(config: Config) -> None:
    """Raise InputError where the environment is not there, or is asked for what Atari alone has."""
    if config.env_id:
        usual, given = preset(config.preset).env, config.env
        of_atari = ("sticky", "full_action_space", "frame_skip", "frame_cap", "noops", "collector")
        changed = [f"--{name.replace('_', '-')}" for name in of_atari if getattr(given, name) != getattr(usual, name)]
        if changed:
            raise InputError(f"want options of Atari with --game alone; got {', '.join(changed)} and --env")
        if config.demonstration == "scripted":
            raise InputError("want --demonstration none or a file.npz with --env; got scripted, which is of some games")
    spec_of(config)


def train(run: Run, resumed: bool) -> bool:
    """The whole of training, from the first random action to the last checkpoint; whether it got there."""
    config, loop = run.config, run.config.loop
    precision = choose(config.device, config.precision)
    build.prepare(config, precision)
    trajectory = _demonstration(run, resumed)
    demonstration = demo.to_replay(trajectory, precision.device) if trajectory is not None else None
    t = new_training(config, precision)
    obs_NYXP = first_frames(t.collector, config.seed, precision.device)
    if resumed:
        checkpoint.restore(run, t)
        run.save_config()
        obs_NYXP.copy_(torch.from_numpy(t.collector.obs_NYXP))
    else:
        run = Run.create(run.path, config)
        if trajectory is not None:
            demo.save(run.path / "demonstration.npz", trajectory)
    _introduce(run, t, precision, demonstration, resumed)

    N = t.collector.num_envs
    phases, clock = Phases(config, t, demonstration, precision), PhaseClock(precision.device)
    learner = Learner(phases)
    turn = Turn(t.collector, learner, obs_NYXP, clock)
    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=t.step + 1 if resumed else None)
    bar = tqdm(total=config.steps, initial=t.step, unit="step", smoothing=0.05, mininterval=1.0)
    logged_s, logged_step, last_return = time.perf_counter(), t.step, float("nan")
    with _interrupts() as interrupted:
        while t.step < config.steps:
            # Play.
            learning = learner.is_warm = t.step >= loop.warmup
            turn.begin()
            before, t.step = t.step, t.step + N
            model_due = _due(before, t.step, loop.model_every) if learning else 0
            agent_due = _due(before, t.step, loop.agent_every) if learning else 0
            if loop.overlap:  # the games step while the updates run, which do not know this step yet
                _learn(config, t, phases, clock, model_due, agent_due)
            steps = turn.finish()
            if steps.over_N.any():
                episodes = _episodes(t.step, steps)
                run.append_rows("episodes.jsonl", episodes)
                last_return = episodes[-1]["return"]
                for episode in episodes:
                    writer.add_scalar("episode/return", episode["return"], t.step)
                    writer.add_scalar("episode/length", episode["length"], t.step)

            # Learn.
            if not loop.overlap:
                _learn(config, t, phases, clock, model_due, agent_due)
            if not learning and t.step >= loop.warmup and config.model.center_frames:
                t.world_model.center_on(t.replay.mean_frame())

            # Log and save.
            bar.update(N)
            if _due(before, t.step, config.log_every):
                means = t.means.pop()
                now_s = time.perf_counter()
                rate = {"time/steps_per_s": (t.step - logged_step) / (now_s - logged_s)}
                if learning:  # random acting is no measure of what is left
                    rate["time/hours_left"] = (config.steps - t.step) / rate["time/steps_per_s"] / 3600
                rate |= clock.pop(t.step - logged_step)
                logged_s, logged_step = now_s, t.step
                for name, value in (means | rate).items():
                    writer.add_scalar(name, value, t.step)
                run.append_rows("metrics.jsonl", [{"step": t.step} | means | rate])
                bar.set_postfix_str(_postfix(means | rate, last_return))
            stopping = bool(interrupted)  # read once: a signal after the checkpoint waits for the next step's
            if _due(before, t.step, config.checkpoint_every) or t.step >= config.steps or stopping:
                checkpoint.save(run, t)
            if stopping:
                break
    bar.close()
    writer.close()
    if t.step < config.steps:
        say(f"stopped at step {t.step}; to go on: python -m storm_fast.train --resume {run.path}")
        return False
    say(f"trained {t.step} steps; now: python -m storm_fast.evaluate {run.path}")
    return True


def _learn(config: Config, t: Training, phases: Phases, clock: PhaseClock, model_due: int, agent_due: int) -> None:
    """The updates that fall due with one step: the world model's, then an imagination and the agent's, in turn."""
    for update in range(max(model_due, agent_due)):
        if update < model_due:
            with clock("model"):
                phases.update_model()
        if update < agent_due and t.model_updates > config.agent.agent_start:
            with clock("imagine"):
                phases.imagine()
            with clock("agent"):
                phases.update_agent()


def _demonstration(run: Run, resumed: bool) -> demo.Arrays | None:
    """The demonstration the configuration names, checked; a resumed run reads its own copy."""
    config = run.config
    wanted = config.demonstration
    if wanted == "auto":
        wanted = "scripted" if config.atari_game in scripted.SCRIPTS else "none"
    if wanted == "none":
        return None
    spec = spec_of(config)
    longest = max(config.model.length, config.imagine.context)
    if wanted == "scripted" and not resumed:
        arrays = scripted.record(config.game, config.env, config.seed, episodes=config.demonstration_episodes)
        demo.check(arrays, "the scripted episode", spec, longest)
        return arrays
    path = run.path / "demonstration.npz" if resumed else Path(wanted)
    return demo.load(path, spec, longest)


def _introduce(run: Run, t: Training, precision: Precision, demonstration: Replay | None, resumed: bool) -> None:
    """Say what runs, on what."""
    config = run.config
    say(f"run        {run.path}{f' (resumed at step {t.step})' if resumed else ''}")
    say(f"preset     {config.preset}: {config.env_name}, {config.steps} steps, {config.env.num_envs} environments")
    kernels = {"reference": "PyTorch references", "triton": "Triton"}
    say(f"device     {precision}; kernels: {kernels[build.resolve_kernels(config.kernels, precision.device)]}")
    say(f"collector  {t.collector.name}")
    say(f"demo       {'none' if demonstration is None else f'{len(demonstration)} steps beside the replay'}")
    if config.compile:
        on_cpu = "no graphs on a CPU: the fast paths that agree with the definitions, which run without this too"
        is_cuda = precision.device.type == "cuda"
        say(f"compile    {'four CUDA graphs, captured at first use' if is_cuda else on_cpu}")
    if not t.collector.restored_exactly:
        say(f"note       {config.env_name} was not restored exactly: this run may differ from one never stopped")


def _as_folder(name: str) -> str:
    """The name of an environment, without what a folder's may not have."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


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
        for i in np.flatnonzero(steps.over_N)
    ]


def _postfix(values: dict[str, float], last_return: float) -> str:
    """The progress bar's figures."""
    shown = {"return": last_return, "model": values.get("model/total"), "agent": values.get("agent/total")}
    parts = [f"{name} {value:.4g}" for name, value in shown.items() if value is not None]
    phases = [f"{name} {values[f'time/{name}_ms']:.3g}" for name in TIMED if f"time/{name}_ms" in values]
    parts += [f"ms a step: {' '.join(phases)}", f"in phases {values['time/in_phases']:.0%}"]
    if "time/gpu_busy" in values:
        parts.append(f"GPU busy {values['time/gpu_busy']:.0%}")
    return ", ".join(parts)


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
    """Parse and train; 0 when done, 2 when the input cannot be used, 130 when stopped by a signal before the end."""
    try:
        return 0 if train(*parse(argv)) else 130
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def cli() -> None:
    """Entry point of the command."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
