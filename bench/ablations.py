"""What each of a CPU's fast paths brings: a training step at full size with one of them taken away at a time.

`python -m bench.ablations [ROUNDS]` prints a Markdown table: medians of milliseconds, and of what a step takes over the
whole set's step of the same round. The two run in turn, each in a process of its own. `--compile`'s own subject, CUDA
graphs, is bench_step.py's.
"""

import statistics
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

from bench.instrument.apart import Apart, Calls
from bench.instrument.ours import Ours
from storm_fast.config import preset
from storm_fast.engine import build
from storm_fast.engine.precision import choose
from storm_fast.model import imagine
from storm_fast.model.encoder import Encoder
from storm_fast.model.onehot import OneHotLinear
from storm_fast.model.past import Reread, Stepwise
from storm_fast.model.world_model import WorldModel

PHASES = ("model", "imagine", "agent")


ALL, WARMUP = "all of them", 3


class Variant(NamedTuple):
    """A training step with `slow` in the place of `owner.name`, or with nothing changed."""

    precision: str
    owner: Any = None
    name: str = ""
    slow: Any = None

    def taken_away(self) -> AbstractContextManager[Any]:
        """Within it the fast path is not there."""
        return mock.patch.object(self.owner, self.name, self.slow) if self.owner else nullcontext()


_auto = partial(Variant, "auto")
VARIANTS = {
    ALL: _auto(),
    "float32, which has neither channels_last nor gathers": Variant("fp32"),
    "without channels_last": _auto(WorldModel, "use_channels_last", lambda self: None),
    "normalisation not folded": _auto(Encoder, "folded", Encoder.forward),
    "no cache of keys and values": _auto(imagine, "Cached", Reread),
    "contexts step by step": _auto(imagine, "Cached", Stepwise),
    "heads at each step": _auto(imagine, "outcomes", imagine.outcomes_by_steps),
    "one-hot products in full": _auto(OneHotLinear, "forward", OneHotLinear.multiplied),
    "pages not kept": _auto(build, "keep_pages", lambda: None),
}
"""A fast path's name, and what takes its place: its definition, which stands beside it."""


def calls_of(name: str) -> Calls:
    """The phases of a variant, for a process that runs nothing else."""
    variant = VARIANTS[name]
    config = replace(preset("storm"), loop=replace(preset("storm").loop, capacity=2000))
    with variant.taken_away():
        ours = Ours(config, choose("cpu", variant.precision))  # type: ignore[arg-type]

    def run(phase: str) -> None:
        with variant.taken_away():
            ours.calls[phase]()

    return {phase: partial(run, phase) for phase in PHASES}


def main(rounds: int) -> None:
    """Measure and print; two processes at a time, for memory."""
    whole = Apart(calls_of, ALL, warmup=WARMUP)
    of_whole: list[list[float]] = []
    sys.stdout.write(f"| | {' | '.join(PHASES)} | together | over {ALL} |\n|---|{'---|' * 5}\n")
    for name in (name for name in VARIANTS if name != ALL):
        without = Apart(calls_of, name, warmup=WARMUP)
        of_variant, ratios = [], []
        for _ in range(rounds):
            of_whole.append(_round_ms(whole))
            of_variant.append(_round_ms(without))
            ratios.append(sum(of_variant[-1]) / sum(of_whole[-1]))
        without.close()
        sys.stdout.write(_row(name, of_variant, f"{statistics.median(ratios):.2f}"))
    whole.close()
    sys.stdout.write(_row(ALL, of_whole, "1"))


def _round_ms(of: Apart) -> list[float]:
    return [1e3 * of.timed(phase)[0] for phase in PHASES]


def _row(name: str, rounds_ms: list[list[float]], ratio: str) -> str:
    medians = [*(statistics.median(of_phase) for of_phase in zip(*rounds_ms, strict=True))]
    medians.append(statistics.median(map(sum, rounds_ms)))
    return f"| {name} | {' | '.join(f'{ms:,.0f}' for ms in medians)} | {ratio} |\n"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
