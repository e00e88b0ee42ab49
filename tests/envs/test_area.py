"""Area interpolation against OpenCV's."""

import cv2
import numpy as np
import pytest

from storm_fast.envs import area


def random_frame(Y: int, X: int, seed: int = 0) -> area.Frame:
    return np.random.default_rng(seed).integers(0, 256, (Y, X, 3), dtype=np.uint8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("Y", [210, 214, 220, 230, 250])
def test_every_screen_of_ale_shrinks_as_opencv_shrinks_it(Y: int, seed: int) -> None:
    frame_YXP = random_frame(Y, 160, seed)
    want_YXP = cv2.resize(frame_YXP, (64, 64), interpolation=cv2.INTER_AREA)
    got_YXP = area.resize(frame_YXP, 64, 64)
    assert got_YXP.dtype == np.uint8
    assert np.array_equal(got_YXP, want_YXP)


@pytest.mark.parametrize(
    ("size", "result"),
    [((65, 63), (64, 1)), ((100, 37), (7, 20)), ((64, 64), (63, 63)), ((210, 160), (84, 84)), ((9, 5), (1, 5))],
)
def test_other_sizes_are_within_one_of_opencv(size: tuple[int, int], result: tuple[int, int]) -> None:
    frame_YXP = random_frame(*size)
    want_YXP = cv2.resize(frame_YXP, result[::-1], interpolation=cv2.INTER_AREA)
    got_YXP = area.resize(frame_YXP, *result)
    assert got_YXP.shape == (*result, 3)
    assert np.abs(got_YXP.astype(int) - want_YXP.astype(int)).max() <= 1


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
@pytest.mark.parametrize(("Y", "X"), [(210, 160), (65, 67), (251, 161)])
def test_a_constant_frame_stays_as_it_is(Y: int, X: int, value: int) -> None:
    got_YXP = area.resize(np.full((Y, X, 3), value, np.uint8), 64, 64)
    assert np.array_equal(got_YXP, np.full((64, 64, 3), value, np.uint8))


def test_its_own_size_gives_the_frame_back() -> None:
    frame_YXP = random_frame(63, 65)
    assert np.array_equal(area.resize(frame_YXP, 63, 65), frame_YXP)


def test_means_round_to_nearest_and_ties_to_even() -> None:
    frame_YXP = np.array([[0, 1, 1, 2, 2, 1, 0, 3]], np.uint8)[..., None].repeat(3, -1)
    assert area.resize(frame_YXP, 1, 4)[0, :, 0].tolist() == [0, 2, 2, 2]  # of 0.5, 1.5, 1.5, 1.5
    assert area.resize(frame_YXP, 1, 2)[0, :, 0].tolist() == [1, 2]  # of 1, 1.5


def test_large_pictures_are_averaged_exactly() -> None:
    Y, X = 401, 601  # each result is a mean of 401 x 601 parts, whose sum passes float32's integers
    frame_YXP = random_frame(Y, X)
    parts_YXP = frame_YXP.astype(np.int64)
    overlap = [
        np.array([[max(0, min((o + 1) * n, (i + 1) * 64) - max(o * n, i * 64)) for i in range(n)] for o in range(64)])
        for n in (Y, X)
    ]
    sums_YXP = np.einsum("ay,yxp,bx->abp", overlap[0], parts_YXP, overlap[1], optimize=True)
    want_YXP, rest_YXP = np.divmod(sums_YXP, Y * X)
    want_YXP += 2 * rest_YXP > Y * X  # an odd number of parts: there is no tie
    assert np.array_equal(area.resize(frame_YXP, 64, 64), want_YXP)


@pytest.mark.parametrize(("rows", "columns"), [(65, 64), (64, 67), (300, 300), (0, 64), (64, 0), (-1, 64)])
def test_enlarging_and_empty_results_raise(rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match=f"want a result of at most 64 x 66.*got {rows} x {columns}"):
        area.resize(random_frame(64, 66), rows, columns)
