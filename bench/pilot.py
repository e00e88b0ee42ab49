"""Which variant of a preset learns better: short trainings of each on the same seeds, and the differences told apart.

    python -m bench.pilot --game Krull --preset tiny --steps 8000 --out runs/pilot \\
        "as it is=" "slow=--model-lr 3e-4" "no entropy=--entropy 0"

Each variant is a name and, behind "=", the trainer's words for it. All variants train with one seed before any does
with the next, so that a machine that drifts drifts for all. A pilot that was cut off goes on when it is started again.
The table, also in OUT/pilot.md, has each seed's score, and the mean difference from the first variant over the seeds
that both have, with its interval of 95 % (Student's t of paired differences): one that holds 0 has shown nothing.
"""

import json
import math
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from scipy import stats

from storm_fast import sweep, train
from storm_fast.console import say
from storm_fast.errors import InputError
from storm_fast.runs.run import Run
from storm_fast.runs.scores import human_normalised

_OURS = ("--preset", "--steps", "--seed", "--game", "--env", "--env-id", "--run-dir", "--resume", "--device")
"""Words of the trainer that the pilot says itself."""


@dataclass(frozen=True)
class Command:
    """Train short runs of several variants of a preset and tell what differs."""

    variants: Annotated[tuple[str, ...], tyro.conf.Positional]
    """NAME=WORDS each, WORDS for the trainer; the others are compared with the first"""
    game: str
    """as in ALE/<game>-v5"""
    out: Path
    """the folder of all runs: OUT/NAME/GAME-sSEED"""
    preset: str = "tiny"
    """what the variants are variants of"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """of each variant"""
    steps: int = 9_000
    """of each training"""
    episodes: int = 10
    """of each evaluation, in five environments"""
    at_once: int = 1
    """runs side by side"""


class Outcome(NamedTuple):
    """What one training came to."""

    score: float  # mean return of the evaluation
    minutes: float  # of training, evaluation apart


class Difference(NamedTuple):
    """Of paired scores, in the mean, and the ends of its 95 % interval; NaN where one seed allows none."""

    mean: float
    low: float
    high: float


def parse_variants(command: Command) -> dict[str, list[str]]:
    """The trainer's words of each variant, by name.

    Raises:
        InputError: for a variant without "=", a name twice or unfit for a folder, or words that the pilot says itself.
    """
    variants: dict[str, list[str]] = {}
    for variant in command.variants:
        name, equals, words = variant.partition("=")
        if not equals or not name or name in variants or set(name) & set('/\\:*?"<>|') or name.startswith("."):
            raise InputError(f"want variants NAME=WORDS, each name once and fit for a folder; got {variant!r}")
        variants[name] = shlex.split(words)
        taken = [word for word in variants[name] if word.split("=")[0].replace("_", "-") in _OURS]
        if taken:
            raise InputError(f"want no {', '.join(_OURS)} in a variant, which the pilot sets; got {' '.join(taken)}")
    if not variants:
        raise InputError("want at least one variant, NAME=WORDS; got none")
    return variants


def pilot(command: Command) -> dict[str, dict[int, Outcome | str]]:
    """Train and evaluate every variant on every seed; by variant and seed the outcome, or what went wrong.

    Raises:
        InputError: for variants or words of no use, before anything runs; for a folder that holds another pilot's runs.
    """
    variants = parse_variants(command)
    common = ["--preset", command.preset, "--steps", str(command.steps)]
    if command.at_once < 1 or not command.seeds or command.episodes % 5 or command.episodes < 5:
        got = f"{command.at_once}, {command.seeds}, {command.episodes}"
        raise InputError(f"want --at-once of at least 1, a seed, and --episodes that 5 divides; got {got}")
    for words in variants.values():
        train.parse(["--run-dir", str(command.out / "not made"), "--game", command.game, *common, *words])
    _claim(command, variants)

    def run(name: str, seed: int) -> Outcome | str:
        wrong = sweep.sweep(
            sweep.Command(
                (command.game,),
                (seed,),
                command.out / name,
                episodes=command.episodes,
                trainer=(*common, *variants[name]),
            )
        )
        if wrong:
            return f"stopped with code {wrong[0].code}: {wrong[0].log}"
        return outcome(Run.open(command.out / name / f"{command.game}-s{seed}"))

    pairs = [(name, seed) for seed in command.seeds for name in variants]
    outcomes: dict[str, dict[int, Outcome | str]] = {name: {} for name in variants}
    with ThreadPoolExecutor(command.at_once) as pool:
        under_way = [pool.submit(run, *pair) for pair in pairs]
        try:
            for (name, seed), future in zip(pairs, under_way, strict=True):
                outcomes[name][seed] = future.result()
                say(f"{name}, seed {seed}: {outcomes[name][seed]}")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes


def _claim(command: Command, variants: dict[str, list[str]]) -> None:
    """Note what the folder's runs are, so that those of other words do not pass for them."""
    file = command.out / "pilot.json"
    asked: dict[str, Any] = {"game": command.game, "preset": command.preset, "steps": command.steps}
    asked["episodes"] = command.episodes
    before = json.loads(file.read_text()) if file.exists() else asked | {"variants": {}}
    known = before.pop("variants")
    if before != asked:
        raise InputError(f"want an --out of its own for a pilot of {asked}; {command.out} holds one of {before}")
    other = [name for name in variants if known.get(name, variants[name]) != variants[name]]
    if other:
        had = shlex.join(known[other[0]])
        raise InputError(f"want new names for new words; {command.out} has {other[0]!r} as {had}")
    command.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asked | {"variants": known | variants}, indent=2) + "\n")


def outcome(run: Run) -> Outcome:
    """Of a run that was trained and evaluated: the score of its last checkpoint, and how long training took."""
    evaluated = max((run.path / "eval").glob("*.json"), key=lambda file: int(file.stem))
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    steps = np.diff([0, *(row["step"] for row in rows)])
    seconds = float(sum(steps / [row["time/steps_per_s"] for row in rows]))
    return Outcome(json.loads(evaluated.read_text())["score"], seconds / 60)


def difference(scores: dict[int, float], base: dict[int, float]) -> Difference:
    """Of `scores` from `base`, over the seeds that both have."""
    paired = [scores[seed] - base[seed] for seed in scores if seed in base]
    if len(paired) < 2:
        return Difference(float(np.mean(paired)) if paired else math.nan, math.nan, math.nan)
    mean, error = float(np.mean(paired)), float(stats.sem(paired))
    reach = float(stats.t.ppf(0.975, len(paired) - 1)) * error
    return Difference(mean, mean - reach, mean + reach)


def table(command: Command, outcomes: dict[str, dict[int, Outcome | str]]) -> str:
    """The outcomes in Markdown."""
    scores = {
        name: {seed: one.score for seed, one in of_seed.items() if isinstance(one, Outcome)}
        for name, of_seed in outcomes.items()
    }
    base = next(iter(outcomes))
    seeds = ", ".join(map(str, command.seeds))
    lines = [
        f"{command.game}, preset {command.preset}, {command.steps} steps, {command.episodes} episodes, seeds {seeds}\n",
        f"| variant | scores | mean | human-normalised | from {base} (95 %) | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, of_seed in outcomes.items():
        told = [f"{one.score:.1f}" if isinstance(one, Outcome) else "failed" for one in of_seed.values()]
        mean = float(np.mean([*scores[name].values()])) if scores[name] else math.nan
        human = human_normalised(command.game, mean)
        apart = "" if name == base else _told(difference(scores[name], scores[base]))
        minutes = [one.minutes for one in of_seed.values() if isinstance(one, Outcome)]
        took = f"{np.mean(minutes):.1f}" if minutes else ""
        normalised = "" if human is None else f"{human:.2f}"
        lines.append(f"| {name} | {' '.join(told)} | {mean:.1f} | {normalised} | {apart} | {took} |")
    return "\n".join(lines) + "\n"


def _told(d: Difference) -> str:
    return f"{d.mean:+.1f}" + ("" if math.isnan(d.low) else f" ({d.low:+.1f} to {d.high:+.1f})")


def main(argv: list[str]) -> int:
    """Run the pilot and print its table; 0 when done, 1 when a run failed, 2 for input that cannot be used."""
    command = tyro.cli(Command, args=argv, prog="python -m bench.pilot")
    try:
        outcomes = pilot(command)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    written = table(command, outcomes)
    (command.out / "pilot.md").write_text(written)
    sys.stdout.write(written)
    return 1 if any(isinstance(one, str) for of_seed in outcomes.values() for one in of_seed.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
