"""Record a demonstration: `python -m storm_fast.demo --game Freeway --out FILE.npz` (a scripted policy's)."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from storm_fast.config import EnvConfig
from storm_fast.console import say
from storm_fast.data import demonstration
from storm_fast.engine import scripted
from storm_fast.errors import InputError


@dataclass(frozen=True)
class Command:
    """Record one episode of the scripted policy as a demonstration file."""

    out: Path
    """the file to write; must not exist"""
    game: str = "Freeway"
    """game with a scripted policy"""
    seed: int = 1
    """of environment and policy"""


def cli() -> None:
    """Entry point of the command."""
    command = tyro.cli(Command)
    try:
        if command.out.exists() or command.out.suffix != ".npz" or not command.out.parent.is_dir():
            raise InputError(f"want a new file.npz in a folder that exists; got {command.out}")
        arrays = scripted.record(command.game, EnvConfig(), command.seed)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    demonstration.save(command.out, arrays)
    say(f"{command.out}: {len(arrays['action'])} steps, return {arrays['reward'].sum():.0f}")


if __name__ == "__main__":
    cli()
