"""A training run of ours without games: the phases of a step, one call each, for benchmarks to time."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bench.instrument.forms import IS_GPU
from storm_fast.config import Config, EnvConfig
from storm_fast.engine import build
from storm_fast.engine.phases import Phases
from storm_fast.engine.precision import Precision
from storm_fast.engine.training import new_training
from storm_fast.envs import EnvSpec
from storm_fast.kernels import backend

ACTIONS = 18
FILLED = 200
"""steps in the replay at the start"""


def _no_games(config: EnvConfig) -> Any:
    return SimpleNamespace(num_envs=config.num_envs)


SPEC = EnvSpec("random frames", ACTIONS, open=_no_games)


class Ours:
    """The phases of a run of one environment, on random frames."""

    def __init__(self, config: Config, precision: Precision) -> None:
        build.prepare(config, precision)
        self.backend = backend.chosen()
        self.t = new_training(config, precision, SPEC)
        self._phases = Phases(config, self.t, None, precision)
        frames = np.random.default_rng(0).integers(0, 256, (FILLED, 1, *SPEC.frame), dtype=np.uint8)
        self._frames = torch.from_numpy(frames)
        if IS_GPU:
            self._frames = self._frames.pin_memory()
        for _ in range(FILLED):
            self.append()
        self.calls: dict[str, Callable[[], None]] = {
            "act": self.act,
            "append": self.append,
            "model": self._phases.update_model,
            "imagine": self._phases.imagine,
            "agent": self._phases.update_agent,
        }

    def act(self) -> None:
        """One action from 16 frames."""
        self._phases.see(self._frames[0])
        self._phases.act()

    def append(self) -> None:
        """One step into the replay."""
        self._phases.see(self._frames[self.t.replay.appended % FILLED])
        self._phases.append(np.zeros(1, np.float32), np.zeros(1, np.bool_))
