"""Episodes are numbered over all environments, in the order in which they begin."""

import numpy as np

from storm_fast.data.episodes import Episodes


def test_each_episode_that_begins_gets_the_next_number() -> None:
    episodes = Episodes(3)
    assert episodes.number_N.tolist() == [0, 1, 2]
    episodes.end(np.array([False, True, False]))
    assert episodes.number_N.tolist() == [0, 3, 2]
    episodes.end(np.array([True, False, True]))
    assert episodes.number_N.tolist() == [4, 3, 5]
    episodes.end(np.zeros(3, np.bool_))
    assert episodes.number_N.tolist() == [4, 3, 5]


def test_numbers_go_on_where_they_were_saved() -> None:
    episodes, other = Episodes(2), Episodes(2)
    episodes.end(np.array([True, True]))
    other.load_state_dict(episodes.state_dict())
    episodes.end(np.array([True, False]))
    other.end(np.array([True, False]))
    assert np.array_equal(episodes.number_N, other.number_N)
