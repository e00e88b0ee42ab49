"""A turn's order: act, send, receive, note; and what counts as an end."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from storm_fast.engine.phases import Phases
from storm_fast.engine.turn import Learner, Turn, first_frames
from storm_fast.envs import AnyCollector, Steps


def steps(terminated: bool = False, truncated: bool = False, life_lost: bool = False) -> Steps:
    flags = [np.array([False, flag]) for flag in (terminated, truncated, life_lost)]
    obs_NYXP = np.zeros((2, 4, 4, 3), np.uint8)
    return Steps(
        obs_NYXP, np.ones(2, np.float32), flags[0], flags[1], flags[2], np.ones(2), np.ones(2, np.int64), obs_NYXP
    )


class Games:
    """A collector that writes the number of the step into its frames, and a player that sees them."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.count = 0

    def reset(self, seed: int) -> npt.NDArray[np.uint8]:
        """Frames full of the seed."""
        return np.full((2, 4, 4, 3), seed, np.uint8)

    def send(self, action_N: npt.NDArray[np.int64], out: Tensor) -> None:
        """Overwrite the frames with the number of the step."""
        self.count += 1
        out.fill_(self.count)
        self.happened.append(f"send {action_N.tolist()}")

    def recv(self) -> Steps:
        """A step without an end."""
        self.happened.append("recv")
        return steps()

    def act(self, obs_NYXP: Tensor) -> npt.NDArray[np.int64]:
        """The number that is seen, and 0."""
        seen = int(obs_NYXP.unique().item())
        self.happened.append(f"act on {seen}")
        return np.array([seen, 0])

    def note(self, steps: Steps) -> None:
        """Take notice."""
        self.happened.append("note")

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Note the phase that begins."""
        self.happened.append(f"{phase}:")
        yield

    host = __call__


def test_a_turn_acts_on_the_newest_frames_then_sends_receives_and_notes() -> None:
    games = Games()
    obs_NYXP = first_frames(cast(AnyCollector, games), 7, torch.device("cpu"))
    turn = Turn(cast(AnyCollector, games), games, obs_NYXP, games)
    turn.begin()
    assert games.happened == ["act:", "act on 7", "send [7, 0]"]
    assert turn.finish().reward_N.tolist() == [1, 1]
    assert games.happened[3:] == ["games:", "recv", "append:", "note"]
    games.happened.clear()
    turn.play()
    assert games.happened == ["act:", "act on 1", "send [1, 0]", "games:", "recv", "append:", "note"]


@pytest.mark.parametrize(
    ("flags", "end", "over"),
    [
        ({}, False, False),
        ({"terminated": True}, True, True),
        ({"life_lost": True}, True, False),
        ({"truncated": True}, False, True),
    ],
)
def test_a_lost_life_is_an_end_and_a_cut_episode_is_over(flags: dict[str, bool], end: bool, over: bool) -> None:
    assert steps(**flags).end_N.tolist() == [False, end]
    assert steps(**flags).over_N.tolist() == [False, over]


def test_the_learner_explores_until_it_is_warm_and_appends_every_step() -> None:
    happened: list[Any] = []
    phases = SimpleNamespace(
        see=lambda obs_NYXP: happened.append("see"),
        act=lambda: happened.append("act"),
        explore=lambda: happened.append("explore"),
        append=lambda reward_N, end_N: happened.append(end_N.tolist()),
        end_episodes=lambda over_N: happened.append(("over", over_N.tolist())),
    )
    learner = Learner(cast(Phases, phases))
    learner.act(torch.zeros(2))
    learner.is_warm = True
    learner.act(torch.zeros(2))
    assert happened == ["see", "explore", "see", "act"]
    happened.clear()
    learner.note(steps(life_lost=True))
    learner.note(steps(truncated=True))
    assert happened == [[False, True], [False, False], ("over", [False, True])]
