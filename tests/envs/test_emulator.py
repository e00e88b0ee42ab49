"""Our emulator (csrc/ale) against ALE's own, which is built beside it."""

from typing import Any

import numpy as np
import pytest

from storm_fast.envs import extension
from storm_fast.envs.games import rom_path
from storm_fast.evaluate import published


def assert_emulators_agree(game: str, steps: int) -> None:
    """ALE's states (registers, memory, chips, random numbers) and what a step gives, every so often and at the end."""
    module = extension()
    assert module is not None
    numbers = {"num_envs": 1, "num_threads": 1, "sticky": 0.25, "frame_skip": 4, "frame_cap": 3000}
    shape = {"rows": 210, "columns": 160, "gray": False, "full_action_space": True}
    settings: dict[str, Any] = {"rom": str(rom_path(game))} | numbers | shape
    ours, stock = (module.Collector(**settings, stock=is_stock) for is_stock in (False, True))
    obs_2NYXP, last_2NYXP = np.zeros((2, 2, 1, 210, 160, 3), np.uint8)
    for games, obs_NYXP in zip((ours, stock), obs_2NYXP, strict=True):
        games.reset([7], obs_NYXP)
    for t, action_N in enumerate(np.random.default_rng(0).integers(0, ours.num_actions, (steps, 1))):
        outcomes = []
        for games, obs_NYXP, last_NYXP in zip((ours, stock), obs_2NYXP, last_2NYXP, strict=True):
            games.send(action_N, obs_NYXP, last_NYXP)
            outcomes.append(games.recv())
        assert np.array_equal(*outcomes), f"{game}: rewards and ends after {t + 1} steps"
        for frames_2NYXP in (obs_2NYXP, last_2NYXP):
            assert np.array_equal(*frames_2NYXP), f"{game}: screens after {t + 1} steps"
        if t % 20 == 0 or t == steps - 1:
            assert ours.save() == stock.save(), f"{game}: states after {t + 1} steps"


@pytest.mark.skipif(extension() is None, reason="the C++ collector was not built")
@pytest.mark.parametrize("game", [*sorted(published()["random"]), "AirRaid", "Tetris"])  # two run out of instructions
def test_our_emulator_is_in_every_state_where_ales_own_is(game: str) -> None:
    assert_emulators_agree(game, 250)
