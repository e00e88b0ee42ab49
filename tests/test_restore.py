"""Every game of Atari 100k goes on exactly after being saved and restored."""

import numpy as np
import pytest

from storm_fast.collect import GymCollector, Steps
from storm_fast.config import EnvConfig
from storm_fast.evaluate import published


def go_on(collector: GymCollector, actions_TN: np.ndarray) -> list[list[np.ndarray]]:
    def copied(steps: Steps) -> list[np.ndarray]:
        return [np.array(field) for field in steps]

    return [copied(collector.step(action_N)) for action_N in actions_TN]


@pytest.mark.parametrize("game", sorted(published()["random"]))
def test_restored_game_goes_on_as_the_saved_one(game: str) -> None:
    first, second = GymCollector(game, EnvConfig()), GymCollector(game, EnvConfig())
    rng = np.random.default_rng(0)
    actions_TN = rng.integers(first.num_actions, size=(220, 1))
    first.reset(1)
    second.reset(2)
    go_on(first, actions_TN[:120])
    second.load_state_dict(first.state_dict())
    want, got = go_on(first, actions_TN[120:]), go_on(second, actions_TN[120:])
    assert all(np.array_equal(a, b) for x, y in zip(want, got, strict=True) for a, b in zip(x, y, strict=True))
