"""Is the C++ collector bit-equal to gymnasium's pipeline on every game? `python -m tests.envs.all_games`

1,500 random steps of two environments of every game of Atari 100k: observations, rewards, ends, lost lives, returns,
lengths, last frames. Then as many of every game of ALE, in our emulator and in ALE's own.
"""

import sys

import numpy as np

from storm_fast.config import EnvConfig
from storm_fast.console import say
from storm_fast.envs import Collector, GymCollector, games
from storm_fast.runs.scores import published
from tests.envs.test_emulator import assert_emulators_agree
from tests.envs.test_exact import assert_same, copy, random_actions

STEPS = 1500


def main(steps: int) -> None:
    """A line per game; ends with an AssertionError at the first that differs."""
    for number, game in enumerate(sorted(published()["random"])):
        config = EnvConfig(num_envs=2, frame_cap=4000)  # so that every game ends within the steps
        ours, twin = Collector(game, config), GymCollector(game, config)
        assert np.array_equal(ours.reset(number), twin.reset(number))
        ends = lost = 0
        for action_N in random_actions(steps, 2, twin.num_actions, number):
            got, want = copy(ours.step(action_N)), copy(twin.step(action_N))
            assert_same([got], [want])
            ends += int((got.terminated_N | got.truncated_N).sum())
            lost += int(got.life_lost_N.sum())
        say(f"{game:15s} {steps} steps x 2 equal; {ends} ends, {lost} lives lost")
    for game in games():
        assert_emulators_agree(game, steps)
    say(f"our emulator equals ALE's own in {steps} steps of each of {len(games())} games")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS)
