"""A configuration that trains in seconds, runs made from it, and how tests read what a run left behind."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from torch import Tensor

from storm_fast.config import Config, EnvConfig, preset
from storm_fast.engine import build
from storm_fast.engine.precision import choose
from storm_fast.envs import extension, spec_of
from storm_fast.runs.run import Run

EXACT: Literal["native", "gym"] = "gym" if extension() is None else "native"
"""The fastest collector here that can be restored exactly."""

SMALL = {
    "preset": "tiny",
    "game": "Breakout",
    "steps": 96,
    "threads": 1,
    "device": "cpu",
    "precision": "fp32",
    "demonstration": "none",
    "checkpoint-every": 40,
    "log-every": 8,
    "num-envs": 2,
    "frame-cap": 40,
    "collector": EXACT,
    "width": 16,
    "heads": 2,
    "latents": 4,
    "classes": 4,
    "stem-channels": 2,
    "bins": 15,
    "length": 8,
    "imagine-batch": 8,
    "horizon": 4,
    "agent-width": 16,
    "agent-start": 2,
    "critic-warmup": 2,
    "warmup": 32,
    "capacity": 1000,
    "model-every": 2,
    "agent-every": 2,
}
"""`small_config()` on the command line; see `flags`."""


def flags(**changes: Any) -> list[str]:
    """The command line of a small run, options replaced or added; None leaves one out."""
    options = SMALL | {name.replace("_", "-"): value for name, value in changes.items()}
    return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]


def small_config(game: str = "Breakout", steps: int = 96) -> Config:
    """Like `tiny` but far smaller: every turn of the loop learns, episodes last at most 10 steps, warm-up 32."""
    tiny = preset("tiny")
    return replace(
        tiny,
        game=game,
        steps=steps,
        device="cpu",
        threads=1,
        precision="fp32",
        demonstration="none",
        checkpoint_every=40,
        log_every=8,
        env=EnvConfig(num_envs=2, frame_cap=40, collector=EXACT),
        model=replace(tiny.model, width=16, heads=2, latents=4, classes=4, stem_channels=2, bins=15, length=8),
        imagine=replace(tiny.imagine, imagine_batch=8, horizon=4),
        agent=replace(tiny.agent, agent_width=16, agent_start=2, critic_warmup=2),
        loop=replace(tiny.loop, warmup=32, capacity=1000, model_every=2, agent_every=2),
    )


def untrained_run(path: Path, config: Config, steps: Iterable[int]) -> Run:
    """A new run folder whose checkpoints hold weights as they are initialised, each step's from a seed of its own."""
    run = Run.create(path, config)
    for step in steps:
        seeded = replace(config, seed=step)
        run.save_weights(step, build.weights(*build.networks(seeded, spec_of(seeded), choose("cpu", "fp32"))))
    return run


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder: the content of files, None for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl or episodes.jsonl, without what depends on the clock."""
    parsed = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in parsed]


def weights(run: Path, step: int) -> dict[str, Tensor]:
    """The weights of a checkpoint, read without the code under test."""
    return load_file(run / "ckpt" / str(step) / "model.safetensors")


def flip(file: Path, position: int, mask: int = 0xFF) -> bytes:
    """Change one byte of a file; gives the content before."""
    before = file.read_bytes()
    after = bytearray(before)
    after[position] ^= mask
    file.write_bytes(bytes(after))
    return before
