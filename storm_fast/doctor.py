"""What this machine has, half a minute's measurement, and what to run on it: `python -m storm_fast.doctor`."""

import gc
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import tyro

from storm_fast.config import Config, preset
from storm_fast.console import say
from storm_fast.engine import build
from storm_fast.engine.phases import Phases
from storm_fast.engine.precision import Precision, choose
from storm_fast.engine.training import new_training
from storm_fast.engine.turn import Learner, Turn, first_frames
from storm_fast.envs import extension
from storm_fast.errors import InputError
from storm_fast.runs.environment import environment


@dataclass(frozen=True)
class Command:
    """Say what this machine has and how long a run of Atari 100k would take on it."""

    seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 30.0
    """how long to measure; one whole step of each preset is measured however long it takes"""
    game: str = "Pong"
    """the game that is measured"""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:<i>`"""


def inventory(config: Config, precision: Precision) -> dict[str, str]:
    """What there is to run on, by name; what is missing says what that means."""
    machine = environment()
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    triton = machine["packages"]["triton"]
    if triton == "not installed":
        triton += ": a GPU would run the PyTorch definitions (--kernels reference)"
    native = "C++ (storm_fast.envs._collector)"
    return {
        "python": str(machine["python"]),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "gpus": ", ".join(f"{name}, {_memory_gb(i):.0f} GB" for i, name in enumerate(machine["gpus"])) or _no_gpu(),
        "driver": str(machine["driver"] or "none"),
        "cpus": f"{machine['cpus']}, {torch.backends.cpu.get_cpu_capability()}, torch uses {torch.get_num_threads()}",
        "device": str(precision),
        "triton": triton,
        "kernels": build.resolve_kernels(config.kernels, precision.device),
        "compiler": compiler or "none: an installation from source leaves the C++ collector out",
        "collector": native if extension() is not None else "ale_py's vector environment; the C++ one was not built",
    }


def _memory_gb(index: int) -> float:
    return torch.cuda.get_device_properties(index).total_memory / 2**30


def _no_gpu() -> str:
    """Why torch sees none, where there may be one."""
    if shutil.which("nvidia-smi") is None:
        return "none"
    if torch.version.cuda is None:
        return "none for this torch, a build for CPUs, though NVIDIA's driver is here: pytorch.org has builds for GPUs"
    return f"none that torch can use, though NVIDIA's driver is here: nvidia-smi says if CUDA {torch.version.cuda} can"


def measure(config: Config, precision: Precision, seconds: float) -> dict[str, float]:
    """Milliseconds of each phase of a training step, medians of as many turns as fit, at least one after a warm-up.

    The replay holds as many random steps as a window needs; nothing is written.
    """
    build.prepare(config, precision)
    t = new_training(config, precision)
    phases = Phases(config, t, None, precision)
    learner = Learner(phases)
    turn = Turn(t.collector, learner, first_frames(t.collector, config.seed, precision.device))
    rows = max(config.model.length, config.imagine.context)

    for _ in range(rows):
        turn.play()
    learner.is_warm = True
    calls: dict[str, Callable[[], Any]] = {"play": turn.play, "model": phases.update_model}
    calls |= {"imagine": phases.imagine, "agent": phases.update_agent}
    took: dict[str, list[float]] = {name: [] for name in calls}
    started_s = time.perf_counter()
    played = 0
    while played < 2 or time.perf_counter() - started_s < seconds:
        for name, call in calls.items():
            before_s = _now_s(precision.device)
            call()
            if played > 0:  # the first compiles, captures and allocates
                took[name].append(_now_s(precision.device) - before_s)
        played += 1
    return {name: 1e3 * sorted(s)[len(s) // 2] for name, s in took.items()}


def _without_demonstration(config: Config) -> Config:
    """As much work, all of it from the replay: a demonstration would have to be played first."""
    m = config.model
    return replace(config, model=replace(m, batch=m.batch + m.demonstration_batch), demonstration="none")


def _now_s(device: torch.device) -> float:
    """The host's clock when the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_as_it_can(config: Config, precision: Precision, seconds: float) -> tuple[Config, dict[str, float]]:
    """`measure`, without --compile where that fails; the configuration that was measured comes first.

    Raises:
        InputError: where memory does not suffice either way.
    """
    say(f"{'measuring':10s} preset {config.preset} for {seconds:.0f} s, after a first step of each phase ...")
    try:
        return config, measure(config, precision, seconds)
    except RuntimeError as error:  # of a phase that cannot be captured, or of memory
        why = str(error).split("\n", 1)[0]
        is_memory = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in why  # a CPU's words
        if not (config.compile or is_memory):
            raise
    if precision.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    if not config.compile:
        raise InputError(f"want more memory for preset {config.preset}; {why}")
    say(f"{'':10s} --compile fails: {why}")
    return measure_as_it_can(replace(config, compile=False), precision, seconds)


def estimate_s(config: Config, ms: dict[str, float]) -> float:
    """Seconds of a whole run of `config`, from its phases' times: a turn of all games each N steps."""
    loop = config.loop
    per_step = ms["play"] / config.env.num_envs + ms["model"] / loop.model_every
    per_step += (ms["imagine"] + ms["agent"]) / loop.agent_every
    return config.steps * per_step / 1e3


def _lasting(seconds: float) -> str:
    """A duration as people say it."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def report(config: Config, precision: Precision, seconds: float) -> tuple[bool, float]:
    """Measure a preset and say what a run of it would take; whether that is with --compile, and its seconds."""
    config, ms = measure_as_it_can(config, precision, seconds)
    lasts_s = estimate_s(config, ms)
    say(f"{'step':10s} " + ", ".join(f"{name} {x:.1f} ms" for name, x in ms.items()) + " (phases apart)")
    run = (
        f"{config.steps:,} steps of {config.game}, preset {config.preset}{' with --compile' if config.compile else ''}"
    )
    say(f"{'estimate':10s} {_lasting(lasts_s)} for {run}")
    return config.compile, lasts_s


def main(argv: list[str]) -> int:
    """Print the report; 0 when done, 2 when the input cannot be used."""
    command = tyro.cli(Command, args=argv)
    try:
        precision = choose(command.device, "auto")
        is_cuda = precision.device.type == "cuda"
        storm = replace(preset("storm"), game=command.game, device=command.device, compile=is_cuda)
        tiny = _without_demonstration(replace(preset("tiny"), device=command.device, compile=is_cuda))
        for name, what in inventory(storm, precision).items():
            say(f"{name:10s} {what}")
        compiles, full_s = report(storm, precision, 0.75 * command.seconds)
        _, tiny_s = report(tiny, precision, 0.25 * command.seconds)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if full_s < 2 * 86400:
        flags = " --compile" if compiles else ""
        say(f"{'try':10s} python -m storm_fast.train --preset storm --game {command.game}{flags}")
    else:
        lasts = _lasting(tiny_s)
        say(f"{'try':10s} python -m storm_fast.train --preset tiny (Freeway, {lasts}): full size takes too long here")
    return 0


def cli() -> None:
    """Entry point of the command."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
