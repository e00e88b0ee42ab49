"""Whether training's memory is flat: `python -m bench.memory` prints what is held along 2,000 turns of four games.

Preset `tiny` on Breakout, a full replay from the start, both updates in every turn. One line of JSON: megabytes after
each 250 turns (resident in the process, or set aside on a GPU). What single phases add is in the step's and the
ladders' benchmarks.
"""

import json
import sys
from dataclasses import replace

from bench.instrument import footprint
from storm_fast.config import Config, preset
from storm_fast.engine import build
from storm_fast.engine.phases import Phases
from storm_fast.engine.precision import choose
from storm_fast.engine.training import new_training
from storm_fast.engine.turn import Learner, Turn, first_frames

TURNS, EVERY = 2000, 250


def config() -> Config:
    """Of the run that is watched."""
    tiny = preset("tiny")
    loop = replace(tiny.loop, capacity=tiny.loop.warmup)
    return replace(tiny, game="Breakout", demonstration="none", compile=True, threads=1, loop=loop)


def held_mb(config: Config, turns: int, every: int) -> list[float]:
    """After each `every` turns with updates, of `turns` that follow the warm-up."""
    precision = choose(config.device, config.precision)
    build.prepare(config, precision)
    t = new_training(config, precision)
    phases = Phases(config, t, None, precision)
    learner = Learner(phases)
    turn = Turn(t.collector, learner, first_frames(t.collector, 0, precision.device))
    held = []
    warm = config.loop.warmup // t.collector.num_envs
    for played in range(-warm, turns):
        learner.is_warm = played >= 0
        turn.play()
        if learner.is_warm:
            phases.update_model()
            phases.imagine()
            phases.update_agent()
            if (played + 1) % every == 0:
                t.means.pop()
                held.append(round(footprint.held_mb(), 1))
    return held


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"turns": TURNS, "held_mb": held_mb(config(), TURNS, EVERY)}) + "\n")
