"""Everything that training changes, and how it is saved to a run folder and restored, to the bit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from storm_fast.config import Config
from storm_fast.data.episodes import Episodes
from storm_fast.data.replay import Replay
from storm_fast.engine import build
from storm_fast.engine.metrics import MeanMetrics
from storm_fast.engine.optimizer import Optimizer
from storm_fast.engine.precision import Precision
from storm_fast.envs import AnyCollector, EnvSpec, spec_of
from storm_fast.model.agent import Agent
from storm_fast.model.policy import Policy
from storm_fast.model.world_model import WorldModel
from storm_fast.runs.run import Run


@dataclass
class Training:
    """The moving parts of one run."""

    spec: EnvSpec
    world_model: WorldModel
    agent: Agent
    model_optimizer: Optimizer
    agent_optimizer: Optimizer
    replay: Replay
    collector: AnyCollector
    policy: Policy
    means: MeanMetrics
    episodes: Episodes
    generator: torch.Generator  # every draw but dropout's, which is torch's own
    step: int = 0  # over all environments
    model_updates: int = 0


def new_training(config: Config, precision: Precision, spec: EnvSpec | None = None) -> Training:
    """Every moving part of a new run, its games opened: those of the configuration, or of another environment."""
    spec = spec or spec_of(config)
    collector, N = spec.open(config.env), config.env.num_envs
    world_model, agent = build.networks(config, spec, precision)
    narrow = precision.dtype == torch.bfloat16
    return Training(
        spec,
        world_model,
        agent,
        Optimizer(world_model, config.model.model_lr, eps=1e-8, clip=config.model.model_clip, narrow=narrow),
        Optimizer(agent, config.agent.agent_lr, eps=1e-5, clip=config.agent.agent_clip, narrow=narrow),
        Replay(
            config.loop.capacity,
            N,
            spec.frame,
            precision.device,
            config.loop.recent_share,
            config.loop.recent_base,
        ),
        collector,
        Policy(world_model, agent, config.loop, N, precision.device),
        MeanMetrics(precision.device),
        Episodes(N),
        torch.Generator(precision.device).manual_seed(_draw_seed(config.seed)),
    )


def _draw_seed(seed: int) -> int:
    """The seed of the draws, apart from that of the initial weights: the same stream must not serve both."""
    return int(np.random.SeedSequence((seed, 0xD3A3)).generate_state(1)[0])


_PARTS = ("model_optimizer", "agent_optimizer", "collector", "policy", "means", "episodes")


def save(run: Run, training: Training) -> None:
    """Write checkpoint `training.step`."""
    oldest = max(0, training.replay.appended - training.replay.rows)
    first = max(run.saved_rows, oldest)
    run.save_replay_rows(first, training.replay.rows_since(first))
    run.forget_replay_rows(oldest)
    state = {name: _plain(getattr(training, name).state_dict()) for name in _PARTS}
    state |= {"step": training.step, "model_updates": training.model_updates}
    state |= {"replay_rows": training.replay.appended, "random": _random_state(training.generator)}
    run.save_weights(training.step, build.weights(training.world_model, training.agent), state)


def restore(run: Run, training: Training) -> None:
    """Put the run's last checkpoint back, in place, and drop the rows of its logs that came after.

    Raises:
        InputError: where a file is missing or damaged, or belongs to another configuration.
    """
    step = run.checkpoints()[-1]
    state, chunks = run.load_state(step)
    build.load_weights(training.world_model, training.agent, run.load_weights(step))
    for name in _PARTS:
        if name != "episodes" or name in state:  # which earlier versions did not number, and did not ask for
            getattr(training, name).load_state_dict(state[name])
    for first, rows in chunks:
        training.replay.restore(first, rows)
    training.step, training.model_updates = state["step"], state["model_updates"]
    random, generator = state["random"], training.generator
    torch.set_rng_state(random["cpu"])
    # Another kind of device cannot continue this one's draws: a run that moves is seeded afresh.
    if generator.device.type == random["device"]:
        generator.set_state(random["draws"])
        if generator.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], generator.device)
    else:
        generator.manual_seed(run.config.seed + 1000 * step)
    run.rewind_logs(step)


def _random_state(generator: torch.Generator) -> dict[str, Any]:
    state = {"device": generator.device.type, "draws": generator.get_state(), "cpu": torch.get_rng_state()}
    if generator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(generator.device)
    return state


def _plain(state: Any) -> Any:
    """Numpy arrays as tensors, which the restricted unpickler reads."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state)
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return [_plain(value) for value in state] if isinstance(state, list) else state
