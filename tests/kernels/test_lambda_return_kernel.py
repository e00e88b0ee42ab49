"""The kernels of the lambda-return and of the reach weights against their reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels.lambda_return import kernel, reference
from tests.kernels.harness import DEVICE, DTYPES, assert_as_exact_as_eager, fenced, guarded, rand, randn

OPS = torch.ops.storm_fast

BATCHES = st.sampled_from([1, 3, 63, 65])
HORIZONS = st.sampled_from([1, 2, 15, 16, 17, 65])
SEEDS = st.integers(0, 2**31 - 1)


def inputs(b: int, t: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, probabilities of an end of which a third are 0 and a third are 1, values."""
    end_BT = (3 * rand(b, t, seed=seed) - 1).clamp(0, 1)
    return randn(b, t, seed=seed + 1, scale=scale), end_BT, randn(b, t + 1, seed=seed + 2, scale=scale)


def exact_return(
    reward_BT: Tensor, end_BT: Tensor, value_BS: Tensor, gamma: float, lam: float, is_next: bool
) -> Tensor:
    """Eq. 8 step by step in float64."""
    reward_BT, end_BT, value_BS = (x.double() for x in (reward_BT, end_BT, value_BS))
    later_B, out_BT = value_BS[:, -1], torch.zeros_like(reward_BT)
    for t in reversed(range(reward_BT.shape[1])):
        mixed_B = (1 - lam) * value_BS[:, t + is_next] + lam * later_B
        later_B = out_BT[:, t] = reward_BT[:, t] + gamma * (1 - end_BT[:, t]) * mixed_B
    return out_BT


@given(
    b=BATCHES,
    t=HORIZONS,
    gamma=st.sampled_from([0.0, 0.985, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    is_next=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=SEEDS,
)
def test_kernel_equals_the_recursion(
    b: int, t: int, gamma: float, lam: float, is_next: bool, dtype: torch.dtype, scale: float, seed: int
) -> None:
    reward_BT, end_BT, value_BS = (fenced(x.to(dtype)) for x in inputs(b, t, seed, scale))
    with guarded():
        got_BT = kernel.return_fwd(reward_BT, end_BT, value_BS, gamma, lam, is_next)
    assert got_BT.dtype == torch.float32
    want_BT = exact_return(reward_BT, end_BT, value_BS, gamma, lam, is_next)
    bootstrap = "next" if is_next else "current"
    eager_BT = reference.lambda_return(reward_BT, end_BT, value_BS, gamma, lam, bootstrap)  # type: ignore[arg-type]
    assert_as_exact_as_eager(got_BT, want_BT, eager_BT, floor=scale)


@pytest.mark.parametrize("is_next", [False, True])
def test_nothing_after_an_end_reaches_the_return(is_next: bool) -> None:
    reward_BT, _, value_BS = inputs(3, 7, seed=0)
    end_BT = torch.zeros(3, 7, device=DEVICE, dtype=torch.bool)
    end_BT[:, 3] = True
    before_BT = kernel.return_fwd(reward_BT, end_BT, value_BS, 0.985, 0.95, is_next)
    reward_BT[:, 4:] += 100
    value_BS[:, 4:] -= 100
    after_BT = kernel.return_fwd(reward_BT, end_BT, value_BS, 0.985, 0.95, is_next)
    assert torch.equal(before_BT[:, :4], after_BT[:, :4])
    assert torch.equal(before_BT[:, 3], reward_BT[:, 3])
    assert (before_BT[:, 4:] != after_BT[:, 4:]).all()


@given(b=BATCHES, t=HORIZONS, dtype=st.sampled_from([torch.float32, torch.bool]), seed=SEEDS)
def test_reach_weight_is_the_product_of_the_discounts_before_the_step(
    b: int, t: int, dtype: torch.dtype, seed: int
) -> None:
    end_BT = inputs(b, t, seed)[1]
    end_BT = fenced((end_BT > 0.9) if dtype == torch.bool else end_BT)
    with guarded():
        got_BT = kernel.reach_fwd(end_BT, 0.985)
    want_BT = torch.ones(b, t, dtype=torch.float64, device=DEVICE)
    for k in range(1, t):
        want_BT[:, k] = want_BT[:, k - 1] * 0.985 * (1 - end_BT[:, k - 1].double())
    assert got_BT.dtype == torch.float32
    torch.testing.assert_close(got_BT.double(), want_BT, rtol=1e-4, atol=1e-9)
