"""One turn of the games: act on the newest frames, send the actions, receive the results, note them.

Training, evaluation, demonstrations and benchmarks all play this way; they differ in who plays.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storm_fast.engine.phases import Phases
from storm_fast.envs import AnyCollector, Steps


class Player(Protocol):
    """Who plays N environments."""

    def act(self, obs_NYXP: Tensor) -> npt.NDArray[np.int64]:
        """The actions for uint8 frames in host memory, which the games overwrite once the actions have been sent."""

    def note(self, steps: Steps) -> None:
        """Note the results of the actions."""


class Clock(Protocol):
    """What times the parts of a turn; see `PhaseClock`."""

    def __call__(self, phase: str, /) -> AbstractContextManager[None]:
        """Count the block as one in which the device works."""

    def host(self, phase: str, /) -> AbstractContextManager[None]:
        """Count the block as one in which the host works or waits."""


class Untimed:
    """No clock."""

    def __call__(self, phase: str, /) -> AbstractContextManager[None]:
        """Count nothing."""
        return nullcontext()

    host = __call__


class Turn:
    """The turns of one player with one collector, played in two halves, so that work fits between them."""

    def __init__(self, collector: AnyCollector, player: Player, obs_NYXP: Tensor, clock: Clock | None = None) -> None:
        """Args: who steps the games, who plays, the memory that holds their newest frames, and what times it."""
        self._collector, self._player, self._obs_NYXP = collector, player, obs_NYXP
        self._clock = clock or Untimed()

    def begin(self) -> None:
        """Act, and send the actions: the games step from here on."""
        with self._clock("act"):
            action_N = self._player.act(self._obs_NYXP)
        self._collector.send(action_N, out=self._obs_NYXP)

    def finish(self) -> Steps:
        """Receive, and let the player note it; valid until the next turn begins."""
        with self._clock.host("games"):
            steps = self._collector.recv()
        with self._clock("append"):
            self._player.note(steps)
        return steps

    def play(self) -> Steps:
        """A whole turn."""
        self.begin()
        return self.finish()


def first_frames(collector: AnyCollector, seed: int, device: torch.device) -> Tensor:
    """Start every game; the first frames, uint8 [N, Y, X, P], in host memory that the device can read directly."""
    obs_NYXP = torch.from_numpy(collector.reset(seed))
    return torch.empty_like(obs_NYXP, pin_memory=device.type == "cuda").copy_(obs_NYXP)


class Learner:
    """The agent in training: random until the warm-up is over, and every step goes to the replay."""

    def __init__(self, phases: Phases) -> None:
        self._phases = phases
        self.is_warm = False

    def act(self, obs_NYXP: Tensor) -> npt.NDArray[np.int64]:
        """The policy's actions, or random ones. The frames are copied before the games overwrite them."""
        self._phases.see(obs_NYXP)
        return self._phases.act() if self.is_warm else self._phases.explore()

    def note(self, steps: Steps) -> None:
        """Append to the replay; let the policy know which episodes are over."""
        self._phases.append(steps.reward_N, steps.end_N)
        if steps.over_N.any():
            self._phases.end_episodes(steps.over_N)
