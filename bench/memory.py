"""Peak memory of one phase in a process of its own: `python bench/memory.py PHASE`.

Phases: `model` (a full-size world-model update), `imagine` (contexts and rollout of 1024), `agent` (the update that
follows), `replay` (100,000 steps filled). Prints one JSON line: resident megabytes before and at the peak, seconds.
A process each, since a peak of resident memory does not come down again.

`steady` trains preset `tiny` with games for 2,000 learning steps and prints what is resident after every 250 of them.
"""

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from storm_fast import build, learn
from storm_fast.checkpoint import new_training
from storm_fast.config import preset
from storm_fast.optimizer import Optimizer
from storm_fast.phases import Phases
from storm_fast.precision import choose
from storm_fast.replay import Replay
from storm_fast.world_model import FRAME

ACTIONS = 18


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _now_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _filled(steps: int) -> Replay:
    replay = Replay(steps, 1, FRAME, torch.device("cpu"))
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        obs_1YXP = torch.randint(256, (1, *FRAME), generator=g, dtype=torch.uint8)
        replay.append(obs_1YXP, torch.zeros(1), torch.zeros(1), torch.zeros(1))
    return replay


def measure(phase: str) -> dict[str, float | str]:
    """Run the phase once and report."""
    config, precision = preset("storm"), choose("cpu", "auto")
    g = torch.Generator().manual_seed(0)
    if phase == "replay":
        before, started = _now_mb(), time.perf_counter()
        replay = _filled(100_000)
        assert len(replay) == 100_000
        return _report(phase, before, started, precision.dtype)
    replay = _filled(200)
    build.prepare(config, precision)
    world_model, agent = build.networks(config, ACTIONS, precision)
    optimizers = {
        "model": Optimizer(world_model, config.model.model_lr, 1e-8, config.model.model_clip),
        "agent": Optimizer(agent, config.agent.agent_lr, 1e-5, config.agent.agent_clip),
    }
    i = config.imagine
    if phase == "agent":
        state = torch.randn(i.imagine_batch, i.horizon + 1, 1536)
        zeros = torch.zeros(i.imagine_batch, i.horizon)
        trajectory = learn.Trajectory(state, zeros.long(), zeros, zeros)
    before, started = _now_mb(), time.perf_counter()
    if phase == "model":
        batch = learn.sample(replay, None, config.model.batch, 0, config.model.length, g)
        learn.update_world_model(world_model, optimizers["model"], batch, g, precision)
    elif phase == "imagine":
        context = learn.draw_context(world_model, replay, None, i.imagine_batch, 0, i.context, g, precision)
        learn.imagine(world_model, agent, context, i, g, precision)
    else:
        learn.update_agent(agent, optimizers["agent"], trajectory, precision)
    return _report(phase, before, started, precision.dtype)


def steady() -> dict[str, list[float] | float]:
    """Resident megabytes along a training run whose replay is full from the start."""
    tiny = preset("tiny")
    config = replace(
        tiny,
        game="Breakout",
        demonstration="none",
        device="cpu",
        threads=1,
        loop=replace(tiny.loop, capacity=tiny.loop.warmup),
    )
    precision = choose(config.device, config.precision)
    build.prepare(config, precision)
    t = new_training(config, precision)
    phases = Phases(config, t, None, precision)
    obs_NYXP = torch.from_numpy(t.collector.reset(0))
    held, N = [], t.collector.num_envs
    for step in range(0, 2000 + config.loop.warmup, N):
        learning = step >= config.loop.warmup
        phases.see(obs_NYXP)
        steps = t.collector.step(phases.act() if learning else phases.explore())
        phases.append(steps.reward_N, steps.terminated_N | steps.life_lost_N)
        if learning:
            phases.update_model()
            phases.imagine()
            phases.update_agent()
            if (step - config.loop.warmup) % 250 < N:
                t.means.pop()
                held.append(round(_now_mb(), 1))
    return {"resident_mb": held, "peak_mb": _peak_mb()}


def _report(phase: str, before_mb: float, started: float, dtype: torch.dtype) -> dict[str, float | str]:
    seconds = time.perf_counter() - started
    return {"phase": phase, "before_mb": before_mb, "peak_mb": _peak_mb(), "first_call_s": seconds, "dtype": str(dtype)}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("model", "imagine", "agent", "replay", "steady"):
        sys.exit("usage: python bench/memory.py model|imagine|agent|replay|steady")
    sys.stdout.write(json.dumps(steady() if sys.argv[1] == "steady" else measure(sys.argv[1])) + "\n")
