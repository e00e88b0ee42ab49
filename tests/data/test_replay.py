"""The replay against a plain list of steps."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.data.replay import Batch, Replay, concat
from storm_fast.errors import InputError

CPU = torch.device("cpu")
FRAME = (2, 3, 3)
FIELDS = ("obs", "action", "reward", "end")

Step = dict[str, Tensor]


def make_step(row: int, N: int) -> Step:
    """A step of N environments whose reward numbers it: row * N + environment."""
    g = torch.Generator().manual_seed(row)
    return {
        "obs": torch.randint(0, 256, (N, *FRAME), generator=g, dtype=torch.uint8),
        "action": torch.randint(0, 18, (N,), generator=g),
        "reward": (row * N + torch.arange(N)).float(),
        "end": torch.rand(N, generator=g) < 0.3,
    }


def fill(capacity: int, N: int, appends: int) -> tuple[Replay, list[Step]]:
    """A replay, and the list of all the steps it was given."""
    replay = Replay(capacity, N, FRAME, CPU)
    model = [make_step(row, N) for row in range(appends)]
    for step in model:
        replay.append(step["obs"], step["action"], step["reward"], step["end"])
    return replay, model


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start_and_env(batch: Batch, N: int) -> list[tuple[int, int]]:
    """Row and environment each window starts at, by its first reward."""
    return [divmod(int(number), N) for number in batch.reward_BT[:, 0]]


@given(
    capacity=st.integers(1, 40),
    n=st.integers(1, 5),
    t=st.integers(1, 9),
    appends=st.integers(0, 60),
    seed=st.integers(0, 2**31 - 1),
)
def test_windows_are_those_of_a_list_of_the_newest_steps(
    capacity: int, n: int, t: int, appends: int, seed: int
) -> None:
    rows = capacity // n
    if rows == 0:
        with pytest.raises(InputError, match="want a replay of at least one step per environment"):
            Replay(capacity, n, FRAME, CPU)
        return
    replay, model = fill(capacity, n, appends)
    oldest = max(0, appends - rows)
    assert len(replay) == n * (appends - oldest)
    if appends - oldest < t:
        with pytest.raises(ValueError, match=f"want at least {t} steps per environment"):
            replay.sample(4, t, generator(seed))
        return
    batch = replay.sample(33, t, generator(seed))
    for b, (start, env) in enumerate(start_and_env(batch, n)):
        assert oldest <= start <= appends - t
        window = model[start : start + t]
        for field_BT, name in zip(batch, FIELDS, strict=True):
            assert torch.equal(field_BT[b], torch.stack([step[name][env] for step in window])), name


def test_windows_are_found_in_every_small_replay() -> None:
    """The property above on cases that are sure to fill, to wrap and to lie on the seam."""
    for appends in range(3, 20):
        replay, model = fill(15, 3, appends)
        batch = replay.sample(50, 3, generator(appends))
        for b, (start, env) in enumerate(start_and_env(batch, 3)):
            want_TYXP = torch.stack([step["obs"][env] for step in model[start : start + 3]])
            assert torch.equal(batch.obs_BTYXP[b], want_TYXP)


def test_fields_have_the_dtypes_and_shapes_of_a_batch() -> None:
    batch = fill(20, 2, 8)[0].sample(5, 3, generator())
    assert [x.dtype for x in batch] == [torch.uint8, torch.int64, torch.float32, torch.bool]
    assert [tuple(x.shape) for x in batch] == [(5, 3, *FRAME), (5, 3), (5, 3), (5, 3)]


@pytest.mark.parametrize("appends", [7, 8, 10, 13, 14, 15, 100])
def test_no_window_crosses_the_seam_of_the_ring(appends: int) -> None:
    replay = Replay(7, 1, FRAME, CPU)
    for row in range(appends):
        replay.append(torch.zeros(1, *FRAME), torch.zeros(1), torch.tensor([row]), torch.zeros(1))
    reward_BT = replay.sample(500, 4, generator()).reward_BT
    assert (reward_BT.diff(dim=1) == 1).all()
    assert reward_BT.min() == appends - 7
    assert reward_BT.max() == appends - 1


@pytest.mark.parametrize("appends", [5, 8, 12])
def test_every_start_and_environment_is_drawn_equally_often(appends: int) -> None:
    B, N, T = 12_000, 3, 2
    replay, _ = fill(8 * N, N, appends)
    drawn = start_and_env(replay.sample(B, T, generator()), N)
    held = min(appends, 8)
    valid = {(row, env) for row in range(appends - held, appends - T + 1) for env in range(N)}
    assert set(drawn) == valid
    mean = B / len(valid)
    chi_square = sum((drawn.count(place) - mean) ** 2 / mean for place in valid)
    # Mean d, variance 2 d for d degrees of freedom; six deviations above.
    degrees = len(valid) - 1
    assert chi_square < degrees + 6 * (2 * degrees) ** 0.5


def test_the_only_window_there_is_is_drawn() -> None:
    replay, model = fill(12, 3, 9)
    batch = replay.sample(20, 4, generator())
    assert {start for start, _ in start_and_env(batch, 3)} == {5}
    assert torch.equal(
        batch.action_BT[0], torch.stack([s["action"] for s in model[5:]])[:, int(batch.reward_BT[0, 0]) % 3]
    )


def test_the_oldest_step_is_dropped_for_the_newest() -> None:
    replay, _ = fill(6, 2, 3)
    assert len(replay) == 6
    assert set(replay.sample(200, 1, generator()).reward_BT.flatten().tolist()) == {0, 1, 2, 3, 4, 5}
    step = make_step(3, 2)
    replay.append(step["obs"], step["action"], step["reward"], step["end"])
    assert len(replay) == 6
    assert set(replay.sample(200, 1, generator()).reward_BT.flatten().tolist()) == {2, 3, 4, 5, 6, 7}


def test_the_same_generator_state_draws_the_same_batch_and_another_another() -> None:
    replay, _ = fill(60, 3, 50)
    first, again, other = (replay.sample(16, 4, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.reward_BT, other.reward_BT)


def test_append_and_sample_copy() -> None:
    replay, _ = fill(10, 2, 4)
    step = make_step(4, 2)
    replay.append(step["obs"], step["action"], step["reward"], step["end"])
    before = replay.rows_since(0)
    for value in (*step.values(), *replay.sample(30, 2, generator()), *replay.rows_since(0).values()):
        value.zero_()
    after = replay.rows_since(0)
    assert all(torch.equal(after[name], before[name]) for name in FIELDS)
    assert before["reward"].max() == 9


@pytest.mark.parametrize(("capacity", "appends", "length"), [(20, 0, 1), (20, 3, 4), (3, 50, 4)])
def test_a_window_longer_than_what_is_held_raises(capacity: int, appends: int, length: int) -> None:
    replay, _ = fill(capacity, 1, appends)
    with pytest.raises(ValueError, match=f"want at least {length} steps per environment"):
        replay.sample(2, length, generator())


@pytest.mark.parametrize("appends", [3, 7, 8, 19])
@pytest.mark.parametrize("N", [1, 3])
def test_rows_saved_in_chunks_restore_the_replay(N: int, appends: int) -> None:
    replay, model = fill(7 * N, N, appends)
    oldest = max(0, appends - 7)
    middle = (oldest + appends) // 2
    everything = replay.rows_since(oldest)
    for name in FIELDS:
        assert torch.equal(everything[name], torch.stack([step[name] for step in model[oldest:]]))
    restored = Replay(7 * N, N, FRAME, CPU)
    restored.restore(oldest, {name: rows[: middle - oldest] for name, rows in everything.items()})
    restored.restore(middle, replay.rows_since(middle))
    for step in (make_step(appends + k, N) for k in range(2)):  # and both go on alike
        for either in (replay, restored):
            either.append(step["obs"], step["action"], step["reward"], step["end"])
    assert len(restored) == len(replay)
    assert restored.appended == replay.appended == appends + 2
    ours, theirs = (either.sample(64, 3, generator()) for either in (replay, restored))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_rows_since_the_next_row_are_none() -> None:
    replay, _ = fill(5, 1, 8)
    rows = replay.rows_since(8)
    assert {name: len(value) for name, value in rows.items()} == dict.fromkeys(FIELDS, 0)


@pytest.mark.parametrize(("appends", "first"), [(8, 9), (8, 2), (8, 0), (8, -1), (3, 4), (3, -1), (0, -1)])
def test_rows_that_are_not_held_raise(appends: int, first: int) -> None:
    replay, _ = fill(5, 1, appends)
    with pytest.raises(ValueError, match=f"want a row that is still held or the next; got {first} of {appends}"):
        replay.rows_since(first)


@pytest.mark.parametrize("appends", [1, 4, 5, 12])
def test_mean_frame_is_the_mean_of_what_is_held(appends: int) -> None:
    replay, model = fill(10, 2, appends)
    held_NYXP = torch.cat([step["obs"] for step in model[-5:]]).double()
    got_YXP = replay.mean_frame()
    assert got_YXP.dtype == torch.float32
    torch.testing.assert_close(got_YXP.double(), held_NYXP.mean(0) / 255, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_concat_keeps_every_window_in_order(parts: int) -> None:
    replay, _ = fill(20, 2, 10)
    batches = [replay.sample(b + 1, 3, generator(b)) for b in range(parts)]
    whole = concat(batches)
    sizes = [b + 1 for b in range(parts)]
    assert isinstance(whole, Batch)
    pieces: list[Any] = [value.split(sizes) for value in whole]
    for b, batch in enumerate(batches):
        assert all(torch.equal(piece[b], value) for piece, value in zip(pieces, batch, strict=True))


def test_recent_starts_are_drawn_as_often_as_their_episodes_weights_say() -> None:
    N, rows, T, appends = 2, 20, 4, 33  # the ring is full, its seam in the middle
    replay = Replay(rows * N, N, FRAME, CPU, recent_share=0.5, recent_base=1.25)
    episodes: dict[tuple[int, int], int] = {}
    numbers = [0, 1]
    for row in range(appends):
        step = make_step(row, N)
        for i in range(N):
            if (row + 3 * i) % 5 == 0:
                numbers[i] = max(numbers) + 1
            episodes[row, i] = numbers[i]
        step_number_N = torch.tensor(numbers)
        replay.append(step["obs"], step["action"], step["reward"], step["end"], step_number_N)
    starts = [(row, i) for row in range(appends - rows, appends - T + 1) for i in range(N)]
    newest = max(episodes[row, i] for row in range(appends - rows, appends) for i in range(N))
    weights = torch.tensor([1.25 ** (episodes[start] - newest) for start in starts]).double()
    chance = 0.5 / len(starts) + 0.5 * weights / weights.sum()
    draws, count = 40_000, dict.fromkeys(starts, 0)
    for start in start_and_env(replay.sample(draws, T, generator()), N):
        count[start] += 1  # a KeyError: a window that spans the seam
    want = draws * chance
    chi_square = float(((torch.tensor([count[s] for s in starts]).double() - want) ** 2 / want).sum())
    # Mean and half of the variance are the number of starts but one; six deviations above is chance once in 10^5.
    assert chi_square < (len(starts) - 1) + 6 * (2 * (len(starts) - 1)) ** 0.5
    uniform = torch.full_like(want, draws / len(starts))
    assert float(((torch.tensor([count[s] for s in starts]).double() - uniform) ** 2 / uniform).sum()) > 1000


def test_a_replay_with_recent_starts_keeps_its_numbers_and_wants_them() -> None:
    replay, restored = (Replay(6, 1, FRAME, CPU, recent_share=1.0) for _ in range(2))
    step = make_step(0, 1)
    with pytest.raises(ValueError, match="want the numbers of the episodes"):
        replay.append(step["obs"], step["action"], step["reward"], step["end"])
    for row in range(8):
        step = make_step(row, 1)
        replay.append(step["obs"], step["action"], step["reward"], step["end"], torch.tensor([row // 3]))
    restored.restore(2, replay.rows_since(2))
    assert torch.equal(replay.episode, restored.episode)
    for a, b in zip(replay.sample(5, 2, generator()), restored.sample(5, 2, generator()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_every_part_of_a_batch_has_its_share_of_recent_starts(share: float) -> None:
    replay = Replay(40, 1, FRAME, CPU, recent_share=share, recent_base=1e6)
    for row in range(40):
        step = make_step(row, 1)
        replay.append(step["obs"], step["action"], step["reward"], step["end"], torch.tensor([row // 30]))
    # All but surely such a start is of the newest episode, and a uniform one of the older.
    newest_B = torch.tensor([row >= 30 for row, _ in start_and_env(replay.sample(4000, 2, generator()), 1)])
    wanted = share + (1 - share) * 9 / 39
    for part_P in newest_B.float().chunk(4):
        assert abs(part_P.mean().item() - wanted) < 6 * (wanted * (1 - wanted) / 1000 + 1e-9) ** 0.5
