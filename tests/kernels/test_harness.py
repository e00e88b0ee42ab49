"""The tolerance that kernels are held to: tight enough that a wrong result fails."""

import pytest
import torch

from tests.kernels.harness import DTYPES, assert_as_exact_as_eager, randn


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("floor", [0.0, 4.0, 4 * 8, 4 * 128**0.5])
def test_zero_and_negated_results_fail_in_every_dtype(floor: float, dtype: torch.dtype) -> None:
    exact = randn(64, 16, seed=0).double()
    assert_as_exact_as_eager(exact.to(dtype), exact, exact, floor)
    for wrong in (torch.zeros_like(exact), -exact, 1.02 * exact):
        with pytest.raises(AssertionError, match="error"):
            assert_as_exact_as_eager(wrong.to(dtype), exact, exact, floor)


def test_a_comparison_that_a_zero_would_pass_is_refused() -> None:
    exact = randn(64, 16, seed=0).double()
    with pytest.raises(AssertionError, match="a zero would pass"):
        assert_as_exact_as_eager(exact.float(), exact, exact, floor=1e6)
    assert_as_exact_as_eager(exact.float(), exact, exact, floor=1e6, may_vanish=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_result_with_a_place_that_is_no_number_fails(value: float) -> None:
    exact = randn(64, 16, seed=0).double()
    got = exact.float()
    got[3, 5] = value
    with pytest.raises(AssertionError, match="not written"):
        assert_as_exact_as_eager(got, exact, exact)
