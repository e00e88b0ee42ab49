"""Train and evaluate several games and seeds: `python -m storm_fast.sweep --games Pong Boxing --seeds 1 2 3`.

Each run is a process of its own with its own folder and log under --out. A sweep that is started again goes on with
what is left: runs that have been evaluated are passed over, those that were stopped are resumed. At the end a report
puts all of them together in OUT/report.html. Further words go to the trainer: `... -- --preset paper --compile`.
"""

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from storm_fast.console import say
from storm_fast.envs import check_game
from storm_fast.errors import InputError
from storm_fast.runs.run import Run
from storm_fast.runs.scores import published
from storm_fast.show import report

_OURS = ("--game", "--env", "--env-id", "--seed", "--run-dir", "--resume", "--device")
"""Words of the trainer that the sweep says itself."""


@dataclass(frozen=True)
class Command:
    """Train and evaluate several games and seeds."""

    games: tuple[str, ...] = ()
    """as in ALE/<game>-v5; none means the 26 of Atari 100k"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """of each game"""
    out: Path = Path("runs/sweep")
    """the folder of all runs"""
    devices: tuple[str, ...] = ("auto",)
    """auto, cpu, cuda or cuda:<i>; runs go to whichever is free"""
    at_once: int = 1
    """runs side by side on each device"""
    episodes: int = 20
    """of each evaluation, in five environments"""
    trainer: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """further words for the trainer, behind --"""


class Failure(NamedTuple):
    """A run that did not end well."""

    run: Path
    log: Path
    code: int


def sweep(command: Command) -> list[Failure]:
    """Run all; those that went wrong.

    Raises:
        InputError: for a game that ALE does not know, or words that are the sweep's own; before anything runs.
        KeyboardInterrupt: on Ctrl-C, once the runs under way have written their checkpoints.
    """
    games = command.games or tuple(published()["human"])
    for game in games:
        check_game(game)
    taken = [word for word in command.trainer if word.split("=")[0].replace("_", "-") in _OURS]
    if taken:
        raise InputError(f"want no {', '.join(_OURS)} among the trainer's words, which the sweep sets; got {taken}")
    if command.at_once < 1 or not command.devices or not command.seeds or command.episodes % 5:
        raise InputError(
            "want --at-once of at least 1, a device, a seed, and --episodes that 5 divides; got "
            f"{command.at_once}, {command.devices}, {command.seeds}, {command.episodes}"
        )
    command.out.mkdir(parents=True, exist_ok=True)
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for device in command.devices * command.at_once:
        free.put(device)
    # Seeds before games: a sweep that is cut off has every game.
    runs = [(game, seed) for seed in command.seeds for game in games]
    with ThreadPoolExecutor(len(command.devices) * command.at_once) as pool:
        refused = threading.Event()
        under_way = [pool.submit(_run, command, game, seed, free, refused) for game, seed in runs]
        try:
            wrong: list[Failure] = []
            for future in under_way:
                failure = future.result()
                if failure is not None:
                    wrong.append(failure)
                    say(f"{failure.run.name}: stopped with code {failure.code}; the end of {failure.log}:")
                    say(failure.log.read_text()[-600:])
        except KeyboardInterrupt:
            say("stopping: the runs under way write their checkpoints")
            pool.shutdown(cancel_futures=True)
            raise
    return wrong


def _run(
    command: Command, game: str, seed: int, free: "queue.SimpleQueue[str]", refused: threading.Event
) -> Failure | None:
    """One run, on a device that is free; what went wrong."""
    if refused.is_set():
        return None
    path = command.out / f"{game}-s{seed}"
    log = path.with_suffix(".log")
    device = free.get()
    try:
        for words in _left(command, path, game, seed, device):
            say(f"{path.name}: {' '.join(words)}")
            with log.open("a") as out:
                code = subprocess.call([sys.executable, "-m", *words], stdout=out, stderr=subprocess.STDOUT)
            if code == 2:  # what the trainer cannot use, it cannot use in any run
                refused.set()
            if code != 0:
                return Failure(path, log, code)
    finally:
        free.put(device)
    return None


def _left(command: Command, path: Path, game: str, seed: int, device: str) -> Iterator[list[str]]:
    """The commands that a run still needs, each asked for when the one before is done."""
    trained = path.exists() and Run.open(path).is_finished
    if not trained:
        where = ["--resume", str(path)] if path.exists() else ["--run-dir", str(path)]
        what = ["--game", game, "--seed", str(seed), "--device", device]
        yield ["storm_fast.train", *where, *what, *command.trainer]
    if not any((path / "eval").glob("*.json")):
        episodes = ["--episodes", str(command.episodes), "--num-envs", "5"]
        yield ["storm_fast.evaluate", str(path), "--device", device, *episodes]


def _report(runs: list[Path], out: Path) -> None:
    """Write the report, or say why it cannot be written: the runs are done in any case."""
    try:
        report.write(runs, out)
    except InputError as error:
        say(f"no report: {error}")
    else:
        say(f"wrote {out}")


def main(argv: list[str]) -> int:
    """Run the sweep and report on it; 0 when all is done, 1 when a run failed, 2 for input that cannot be used."""
    command = tyro.cli(Command, args=argv)
    try:
        wrong = sweep(command)
        done = [path.parent for path in sorted(command.out.glob("*/config.json"))]
        if done:
            _report(done, command.out / "report.html")
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 1 if wrong else 0


def cli() -> None:
    """Entry point of the command."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
