"""Report on one or several runs: `python -m storm_fast.report RUN ...`; storm_fast/show/report.py draws the page."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from storm_fast.console import say
from storm_fast.errors import InputError
from storm_fast.show.report import write


@dataclass(frozen=True)
class Command:
    """Report on runs, in one HTML file."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders, of one game or several"""
    out: Path = field(default=Path("report.html"))
    """the file to write; its folder must exist"""


def main(argv: list[str]) -> int:
    """Write the report; 0 when done, 2 when the input cannot be used."""
    command = tyro.cli(Command, args=argv)
    try:
        if not command.runs:
            raise InputError("want at least one run folder; got none")
        write(command.runs, command.out)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    say(f"wrote {command.out} ({command.out.stat().st_size / 1024:.0f} KiB)")
    return 0


def cli() -> None:
    """Entry point of the command."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
