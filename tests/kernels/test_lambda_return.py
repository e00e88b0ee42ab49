"""Properties of the lambda-return and of the weights of its steps."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels.lambda_return import lambda_return, reach_weights

Bootstrap = Literal["current", "next"]
BOOTSTRAPS: list[Bootstrap] = ["current", "next"]


def random_inputs(B: int, T: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, probabilities of an end of which a third are 0 and a third are 1, values."""
    g = torch.Generator().manual_seed(seed)
    end_BT = (3 * torch.rand(B, T, generator=g) - 1).clamp(0, 1)
    return torch.randn(B, T, generator=g), end_BT, torch.randn(B, T + 1, generator=g)


def naive(
    reward_BT: Tensor, end_BT: Tensor, value_BS: Tensor, gamma: float, lam: float, bootstrap: Bootstrap
) -> Tensor:
    """The definition, one number after the other, in Python's float64."""
    B, T = reward_BT.shape
    return_BT = torch.zeros(B, T, dtype=torch.float64)
    for b in range(B):
        later = value_BS[b, T].item()
        for t in range(T - 1, -1, -1):
            value = value_BS[b, t if bootstrap == "current" else t + 1].item()
            mixed = (1 - lam) * value + lam * later
            later = reward_BT[b, t].item() + gamma * (1 - end_BT[b, t].item()) * mixed
            return_BT[b, t] = later
    return return_BT


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
@given(
    b=st.integers(1, 5),
    t=st.sampled_from([1, 2, 3, 16, 63, 65]),
    gamma=st.sampled_from([0.0, 0.985, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 2**31 - 1),
)
def test_return_equals_a_float64_loop(
    bootstrap: Bootstrap, b: int, t: int, gamma: float, lam: float, seed: int
) -> None:
    reward_BT, end_BT, value_BS = random_inputs(b, t, seed)
    got_BT = lambda_return(reward_BT, end_BT, value_BS, gamma, lam, bootstrap)
    assert got_BT.dtype == torch.float32
    want_BT = naive(reward_BT, end_BT, value_BS, gamma, lam, bootstrap)
    # Sums of at most 65 terms of order 1: 65 roundings of 2^-24 of at most some tens.
    torch.testing.assert_close(got_BT.double(), want_BT, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_nothing_after_an_end_reaches_the_return(bootstrap: Bootstrap) -> None:
    reward_BT, _, value_BS = random_inputs(3, 7, seed=0)
    end_BT = torch.zeros(3, 7)
    end_BT[:, 3] = 1
    before_BT = lambda_return(reward_BT, end_BT, value_BS, 0.985, 0.95, bootstrap)
    reward_BT[:, 4:] += 100
    value_BS[:, 4:] -= 100
    after_BT = lambda_return(reward_BT, end_BT, value_BS, 0.985, 0.95, bootstrap)
    assert torch.equal(before_BT[:, :4], after_BT[:, :4])
    assert torch.equal(before_BT[:, 3], reward_BT[:, 3])
    assert (before_BT[:, 4:] != after_BT[:, 4:]).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_ends_may_be_flags_or_numbers(dtype: torch.dtype) -> None:
    reward_BT, end_BT, value_BS = random_inputs(3, 7, seed=1)
    got_BT = lambda_return(reward_BT, (end_BT > 0.5).to(dtype), value_BS, 0.985, 0.95, "current")
    want_BT = naive(reward_BT, (end_BT > 0.5).double(), value_BS, 0.985, 0.95, "current")
    torch.testing.assert_close(got_BT.double(), want_BT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_lambda_zero_is_one_step(bootstrap: Bootstrap) -> None:
    reward_BT, end_BT, value_BS = random_inputs(3, 7, seed=2)
    mixed_BT = value_BS[:, :-1] if bootstrap == "current" else value_BS[:, 1:]
    got_BT = lambda_return(reward_BT, end_BT, value_BS, 0.9, 0.0, bootstrap)
    torch.testing.assert_close(got_BT, reward_BT + 0.9 * (1 - end_BT) * mixed_BT)


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_lambda_one_is_the_discounted_sum_and_reads_the_last_value_alone(bootstrap: Bootstrap) -> None:
    reward_BT, _, value_BS = random_inputs(3, 7, seed=3)
    got_BT = lambda_return(reward_BT, torch.zeros(3, 7), value_BS, 0.9, 1.0, bootstrap)
    padded_BS = torch.cat([reward_BT, value_BS[:, -1:]], 1)
    want = [sum(0.9 ** (k - t) * padded_BS[:, k] for k in range(t, 8)) for t in range(7)]
    torch.testing.assert_close(got_BT, torch.stack(want, 1))


def test_one_step_mixes_the_two_values_as_the_bootstrap_says() -> None:
    reward_BT, end_BT = torch.tensor([[2.0]]), torch.tensor([[0.25]])
    value_BS = torch.tensor([[3.0, 5.0]])
    current = lambda_return(reward_BT, end_BT, value_BS, 0.5, 0.75, "current")
    following = lambda_return(reward_BT, end_BT, value_BS, 0.5, 0.75, "next")
    assert current.tolist() == [[2 + 0.5 * 0.75 * (0.25 * 3 + 0.75 * 5)]]
    assert following.tolist() == [[2 + 0.5 * 0.75 * 5]]


@given(t=st.sampled_from([1, 2, 16, 65]), seed=st.integers(0, 2**31 - 1))
def test_reach_weight_is_the_product_of_the_discounts_before_the_step(t: int, seed: int) -> None:
    _, end_BT, _ = random_inputs(3, t, seed)
    got_BT = reach_weights(end_BT, 0.985)
    want_BT = torch.ones(3, t, dtype=torch.float64)
    for k in range(1, t):
        want_BT[:, k] = want_BT[:, k - 1] * 0.985 * (1 - end_BT[:, k - 1].double())
    assert got_BT.dtype == torch.float32
    torch.testing.assert_close(got_BT.double(), want_BT, rtol=1e-4, atol=1e-7)


def test_steps_after_an_end_weigh_nothing_and_the_last_end_does_not_count() -> None:
    end_BT = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert reach_weights(end_BT, 0.5).tolist() == [[1, 0.5, 0, 0], [1, 0.5, 0.25, 0.125]]


@pytest.mark.parametrize(
    ("end", "value"),
    [((2, 3), (2, 3)), ((2, 3), (2, 5)), ((2, 3), (3, 4)), ((2, 4), (2, 4)), ((3, 3), (2, 4)), ((3,), (2, 4))],
)
def test_shapes_that_do_not_fit_raise(end: tuple[int, ...], value: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"want reward \[B, T\], end \[B, T\], value \[B, T \+ 1\]; got \(2, 3\)"):
        lambda_return(torch.zeros(2, 3), torch.zeros(end), torch.zeros(value), 0.9, 0.9, "current")
