"""Every game of Atari 100k goes on exactly after being saved and restored."""

import numpy as np
import pytest

from storm_fast.config import EnvConfig
from storm_fast.envs import Collector, GymCollector, Steps, extension
from storm_fast.runs.scores import published


def go_on(collector: GymCollector | Collector, actions_TN: np.ndarray) -> list[list[np.ndarray]]:
    def copied(steps: Steps) -> list[np.ndarray]:
        return [np.array(field) for field in steps]

    return [copied(collector.step(action_N)) for action_N in actions_TN]


def assert_restored_exactly(kind: type[GymCollector] | type[Collector], game: str, steps: int) -> None:
    """Saved after `steps` random steps and loaded elsewhere, the game goes on as the saved one for 100 more."""
    first, second = kind(game, EnvConfig()), kind(game, EnvConfig())
    rng = np.random.default_rng(0)
    actions_TN = rng.integers(first.num_actions, size=(steps + 100, 1))
    first.reset(1)
    second.reset(2)
    go_on(second, actions_TN[:7])
    go_on(first, actions_TN[:steps])
    second.load_state_dict(first.state_dict())
    want, got = go_on(first, actions_TN[steps:]), go_on(second, actions_TN[steps:])
    assert all(np.array_equal(a, b) for x, y in zip(want, got, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("game", sorted(published()["random"]))
def test_restored_game_goes_on_as_the_saved_one(game: str) -> None:
    assert_restored_exactly(GymCollector, game, 120)


@pytest.mark.skipif(extension() is None, reason="the C++ collector was not built")
@pytest.mark.parametrize("steps", [1, 120, 333])
@pytest.mark.parametrize("game", sorted(published()["random"]))
def test_restored_native_game_goes_on_as_the_saved_one(game: str, steps: int) -> None:
    assert_restored_exactly(Collector, game, steps)
